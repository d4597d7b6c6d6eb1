"""Predicting a file that nobody voted on: judged on all devices, within a time budget, no row twice.

What is judged lies in `<output>.parts`, a store of logits. A run that was killed resumes from there, and once the
submission is written it is removed.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.artefacts.building import Artefact
from core.labels import Labels
from core.locks import alone
from core.records import LABELS
from core.store.parts import clear
from deploy.predicting.budget import speed_notes
from deploy.predicting.cascade import Judge, check_choice, last_words, lined_up, open_judges, stores_in
from deploy.predicting.config import PredictConfig
from deploy.predicting.devices import count_devices, side_by_side
from deploy.predicting.engine_notes import notes_in, tell_marked
from deploy.predicting.judging import Judging, judge_share
from deploy.predicting.outputs import discard_parts, parts_folder, probability_list
from deploy.predicting.prediction_sets import write_sets
from deploy.predicting.row_notes import tell_judges, tell_learned, tell_left_out, tell_made_up, tell_unreadable
from deploy.predicting.submission import probabilities, write_submission, write_verdicts
from deploy.predicting.unlabelled import Source, Unlabelled, read_unlabelled
from eval.config import CanaryMode
from eval.conformal import read_thresholds
from eval.recalibration import read_recalibration
from teachers.scorers.config import ScorerConfig

log = logging.getLogger(__name__)


def write_predictions(
    source: Source,
    output: Path,
    models: Mapping[str, Path],
    scorer: ScorerConfig,
    settings: PredictConfig,
    canaries: CanaryMode,
    coverage: float,
    overwrite: bool,
) -> None:
    """Write `output` with the probabilities of every row of `source`, from the exports in the folders `models`.

    Of several, from small to large and by name, each row has those of the last that judged it. Of judges that know no
    ties, `output` holds whom people prefer, and the probabilities lie beside it. So do the prediction sets, which hold
    the vote as often as `coverage` says, where the exports have thresholds.

    Raises `UserError` where a process ended early: what it judged stays, and the same command resumes.
    """
    began = time.time()
    rows, opened, parts = read_unlabelled(source), open_judges(models, scorer), parts_folder(output)
    judges, labels = lined_up(models, opened, parts, settings), opened[0].labels
    check_choice(judges, settings, len(rows.conversations))
    with_rules = f", {len(rows.ruled)} by rule" if rows.ruled else ""
    log.info("%s: %d rows, %d for the judge%s", source.path, len(rows.ids), len(rows.conversations), with_rules)
    contents = [judge.manifest.content for judge in opened]
    model = contents if len(contents) > 1 else contents[0]
    identity = {"input": rows.identity, "model": model, "scorer": scorer.identity}
    judgements = Artefact(parts, "submission", identity, [], parts.parent)
    with alone(parts):
        # Before anything is judged
        form = 'each text is a JSON list of turns, such as ["Hello"], docs/data.md has the layouts'
        most = source.data.max_rejected
        tell_unreadable(rows.unreadable, len(rows.ids), most, output, fate="get the prior", form=form)
        tell_made_up(rows)
        for judge in opened:
            tell_learned(rows.conversations, judge.folder)
        # overwrite=true is about the output. Scores on the way to a new one are kept, however often that is killed.
        if overwrite and judgements.differing_start():
            discard(parts)
        judgements.claim()

        # Judge what is not judged yet.
        if rows.conversations:
            deadline = None if settings.minutes is None else began + 60 * settings.minutes
            judging = Judging(source, judges, scorer, settings, canaries, deadline)
            side_by_side(judge_share, count_devices(settings.devices, scorer), scorer.gpus_spanned, judging)

        write_answers(rows, judges, labels, output, parts, coverage)
        discard(parts)
    log.info("%s: %d rows, checked, after %.1f minutes", output, len(rows.ids), (time.time() - began) / 60)


def write_answers(
    rows: Unlabelled, judges: Sequence[Judge], labels: Labels, output: Path, parts: Path, coverage: float
) -> None:
    """Write the submission and what is to be said of it, from what the `judges` said."""
    scores = last_words(judges)
    tell_judges(rows, scores, [judge.name for judge in judges], output)
    tell_left_out(rows, scores, labels, output)
    tell_marked(parts, output)
    table = probabilities(rows, scores, [read_recalibration(judge.folder) for judge in judges], labels)
    if labels == LABELS:
        write_submission(output, rows.ids, table)
    else:
        write_submission(probability_list(output), rows.ids, table)
        write_verdicts(output, rows.ids, table)
    write_sets(output, rows, scores, table, [read_thresholds(judge.folder) for judge in judges], coverage)


def discard(parts: Path) -> None:
    """Remove what is judged."""
    notes = [*notes_in(parts), *speed_notes(stores_in(parts))]
    for store in stores_in(parts):
        clear(store)
    discard_parts(parts, notes)
