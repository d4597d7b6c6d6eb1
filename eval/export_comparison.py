"""An export beside its student, on conversations that trained neither: what it lost, and the temperature it needs."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from core import screen
from core.artefacts.building import Artefact
from core.artefacts.identity import identity_hash
from core.json_files import write_json
from core.labels import Labels, among
from core.prompts import Renderer
from core.provenance import Learned
from core.records import Conversation
from core.scoring import logits_by_order
from eval.averages import Averages, averages_table, compare_averages
from eval.bootstrap import Resampling
from eval.config import FidelityConfig
from eval.conformal import fit_thresholds, write_thresholds
from eval.fidelity import FIDELITY, Logits, exceeded, fidelity, untold
from eval.judges.predictions import predictions
from eval.recalibration import Kind, fit_recalibration, read_recalibration, write_recalibration
from eval.results import read_result, write_result
from students.export.fold_average import average, methods
from students.export.steps import ExportModel
from students.trained import TrainedJudge
from teachers.scorers.config import LocalConfig, ScorerConfig

log = logging.getLogger(__name__)
AVERAGES = "averages.json"


@dataclass(frozen=True)
class ReadModel:
    """A model's folder with its content hash, the prompts that it was trained on, and the scorer that reads it.

    What it answers is kept below `root`; its logits are those of `labels`.
    """

    folder: Path
    content: str
    renderer: Renderer
    scorer: ScorerConfig
    root: Path
    labels: Labels

    def logits(self, conversations: Sequence[Conversation]) -> Logits:
        """Of both orders, each [n, labels]."""
        found = predictions(self.folder, self.content, self.renderer, self.scorer, conversations, self.root)
        return logits_by_order(found.scores, [c.id for c in conversations], self.labels)


def unquantised(judge: TrainedJudge, scorer: LocalConfig, root: Path) -> ReadModel:
    """What an export is compared with: base and adapter merged and read in fp32, whatever the type of the base."""
    model = judge.merged(root, torch.float32)
    content = f"{judge.manifest.content}/{model.name}"  # a merge in the base's own type answers otherwise
    exact = replace(scorer.in_transformers(), dtype="fp32", load_in_8bit=False)
    return ReadModel(model, content, judge.renderer, exact, root, judge.labels)


def exported(judge: TrainedJudge, model: ExportModel, scorer: ScorerConfig, root: Path) -> ReadModel:
    """The model of a judge's export."""
    return ReadModel(model.folder, model.content, judge.renderer, scorer, root, judge.labels)


def write_fidelity(
    folder: Path,
    student: ReadModel,
    export: ReadModel,
    conversations: Sequence[Conversation],
    learned: Learned,
    limits: FidelityConfig,
    draws: int,
    seed: int,
) -> list[str]:
    """Write `folder`/fidelity.json: what an export lost on at most `limits.rows` of the conversations.

    `learned`: what its student learned from. Gives the limits that are broken, in words, and warns of those that these
    conversations cannot tell.
    """
    compared = sample(conversations, limits.rows, seed)
    found = fidelity(
        student.logits(compared),
        export.logits(compared),
        [c.id for c in compared],
        *votes_and_groups(compared, student.labels),
        limits,
        resampling=Resampling(draws, seed),
        taught=sum(c.fingerprint() in learned.through_teachers for c in compared) if learned.is_known else None,
    )
    write_result(folder / FIDELITY, found)
    if unclear := untold(found.differences, found.rows):
        names = ", ".join(words.partition(" ")[0] for words in unclear)
        log.warning("%s: %d conversations cannot tell of %s (%s)", folder, found.rows, names, FIDELITY)
    verdicts = 100 * found.differences["verdicts"].difference
    losses = found.log_loss, found.student_log_loss
    log.info("%s: log loss %.4f, unquantised %.4f; %.1f%% of verdicts differ", folder, *losses, verdicts)
    return exceeded(found.differences)


def fit_to_votes(folder: Path, export: ReadModel, validation: Sequence[Conversation], kind: Kind) -> None:
    """Fit what predict and serve make of an export's logits: temperature scaling, then thresholds of sets."""
    write_temperature(folder, export, validation, kind)
    write_sets(folder, export, validation)


def write_temperature(folder: Path, export: ReadModel, validation: Sequence[Conversation], kind: Kind) -> None:
    """Fit an export's own logits to the votes of validation conversations, and write what predict and serve apply."""
    if kind == "none":
        return
    logits, (votes, _) = np.mean(export.logits(validation), axis=0), votes_and_groups(validation, export.labels)
    recalibration = fit_recalibration(logits, votes, kind)
    write_recalibration(folder, recalibration, {"kind": kind, "rows": len(validation)})


def write_sets(folder: Path, export: ReadModel, validation: Sequence[Conversation]) -> None:
    """Fit the thresholds of an export's prediction sets to the votes of validation conversations, and write them.

    The probabilities are those that predict and serve give, after temperature scaling. Nothing is written where fewer
    than two prompts are there to fit on.
    """
    if len({c.group for c in validation}) < 2:
        return
    recalibrate = read_recalibration(folder)
    ab, ba = (recalibrate(logits) for logits in export.logits(validation))
    write_thresholds(folder, fit_thresholds(ab, ba, *votes_and_groups(validation, export.labels)))


def print_averages(
    folds: Sequence[TrainedJudge],
    conversations: Sequence[Conversation],
    scorer: LocalConfig,
    below: Path,
    root: Path,
    *,
    draws: int,
    seed: int,
) -> None:
    """Print what averaging costs, and keep it in averages-* `below` a folder: folds, averages, and the ensemble.

    On validation conversations that trained none of the folds. Whoever chooses an average by it has not looked at the
    test split.
    """
    names = [f"fold {fold.manifest.config['fold']}" for fold in folds]
    folder = below / f"averages-{identity_hash([fold.manifest.content for fold in folds])}"
    identity = {"folds": names, "rows": identity_hash([c.id for c in conversations])}
    artefact = Artefact(folder, "averages", identity, [fold.folder for fold in folds], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            averages = {f"average, {name}": average(folds, name, root) for name in methods(folds)}
            judges = {**dict(zip(names, folds, strict=True)), **averages}
            logits = {n: unquantised(judge, scorer, root).logits(conversations) for n, judge in judges.items()}
            votes, groups = votes_and_groups(conversations, folds[0].labels)
            compared = compare_averages(logits, names, votes, groups, Resampling(draws, seed))
            energy = {name: judge.manifest.extra["energy"] for name, judge in averages.items()}
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / AVERAGES, {**asdict(compared), "energy": energy})
            artefact.finish(rows={"compared": len(conversations)})
    screen.console().print(averages_table(read_result(Averages, folder / AVERAGES)))


def sample(conversations: Sequence[Conversation], most: int, seed: int) -> list[Conversation]:
    """At most so many of them, in their order, drawn by a hash of their ids: of all sources, of all lengths."""
    drawn = {c.id for c in sorted(conversations, key=lambda c: identity_hash([seed, c.id]))[:most]}
    return [c for c in conversations if c.id in drawn]


def votes_and_groups(conversations: Sequence[Conversation], labels: Labels) -> tuple[np.ndarray, list[str]]:
    """Votes [n, labels], and the prompt group of each."""
    return among(np.array([c.votes for c in conversations]), labels), [c.group for c in conversations]
