"""Predicting a file that nobody voted on: judged on all devices, within a time budget, no row twice.

What is judged lies in `<output>.parts`, a store of logits. A run that was killed resumes from there, and once the
submission is written it is removed.
"""

import logging
import time
from pathlib import Path

from core.artefacts.building import Artefact
from core.exported import open_exported
from core.locks import alone
from core.records import LABELS
from core.store.parts import clear
from deploy.predicting.config import PredictConfig
from deploy.predicting.devices import count_devices, side_by_side
from deploy.predicting.engine_notes import notes_in, tell_marked
from deploy.predicting.judging import Judging, judge_share, read_scores
from deploy.predicting.outputs import discard_parts, parts_folder, probability_list
from deploy.predicting.prediction_sets import write_sets
from deploy.predicting.row_notes import tell_learned, tell_left_out, tell_made_up, tell_unreadable
from deploy.predicting.submission import probabilities, write_submission, write_verdicts
from deploy.predicting.unlabelled import Source, read_unlabelled
from eval.config import CanaryMode
from eval.conformal import read_thresholds
from eval.recalibration import read_recalibration
from teachers.scorers.config import ScorerConfig

log = logging.getLogger(__name__)


def write_predictions(
    source: Source,
    output: Path,
    model: Path,
    scorer: ScorerConfig,
    settings: PredictConfig,
    canaries: CanaryMode,
    coverage: float,
    overwrite: bool,
) -> None:
    """Write `output` with the probabilities of every row of `source`, from the export in the folder `model`.

    Of a judge that knows no ties, `output` holds whom people prefer, and the probabilities lie beside it. So do the
    prediction sets, which hold the vote as often as `coverage` says, where the export has thresholds.

    Raises `UserError` where a process ended early: what it judged stays, and the same command resumes.
    """
    began = time.time()
    rows, judge, parts = read_unlabelled(source), open_exported(model), parts_folder(output)
    with_rules = f", {len(rows.ruled)} by rule" if rows.ruled else ""
    log.info("%s: %d rows, %d for the judge%s", source.path, len(rows.ids), len(rows.conversations), with_rules)
    identity = {"input": rows.identity, "model": judge.manifest.content, "scorer": scorer.identity}
    judgements = Artefact(parts, "submission", identity, [], parts.parent)
    with alone(parts):
        # Before anything is judged
        form = 'each text is a JSON list of turns, such as ["Hello"], docs/data.md has the layouts'
        most = settings.max_unreadable
        tell_unreadable(rows.unreadable, len(rows.ids), most, output, fate="get the prior", form=form)
        tell_made_up(rows)
        tell_learned(rows.conversations, judge.folder)
        # overwrite=true is about the output. Scores on the way to a new one are kept, however often that is killed.
        if overwrite and judgements.differing_start():
            discard(parts)
        judgements.claim()

        # Judge what is not judged yet.
        if rows.conversations:
            deadline = None if settings.minutes is None else began + 60 * settings.minutes
            judging = Judging(source, model, parts, scorer, settings, canaries, deadline)
            side_by_side(judge_share, count_devices(settings.devices, scorer), scorer.gpus_spanned, judging)

        # Write the submission and what is to be said of it.
        scores = read_scores(parts)
        tell_left_out(rows, scores, judge.labels, output)
        tell_marked(parts, output)
        table = probabilities(rows, scores, read_recalibration(judge.folder), judge.labels)
        if judge.labels == LABELS:
            write_submission(output, rows.ids, table)
        else:
            write_submission(probability_list(output), rows.ids, table)
            write_verdicts(output, rows.ids, table)
        write_sets(output, rows, scores, table, read_thresholds(judge.folder), coverage)
        discard(parts)
    log.info("%s: %d rows, checked, after %.1f minutes", output, len(rows.ids), (time.time() - began) / 60)


def discard(parts: Path) -> None:
    """Remove what is judged."""
    clear(parts)
    discard_parts(parts, notes_in(parts))
