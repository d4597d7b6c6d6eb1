"""Several folds of one student: which conversations trained them, which none of them, and their average as a judge."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from core.artefacts.building import Artefact
from core.artefacts.manifest import made_from
from core.data.table import load_conversations
from core.errors import UserError
from core.exported import average_folder
from core.json_files import write_json
from core.labels import noted
from core.pointwise import JUDGE, Choice
from core.pointwise import noted as noted_choice
from core.provenance import union, write_learned
from core.records import Conversation
from students.export.averaging import average_adapters, write_adapter
from students.merging import Adapter, read_adapter
from students.trained import TrainedJudge, open_trained
from students.training.data import split

METHODS = ("factors", "delta", "svd")


@dataclass(frozen=True)
class Rows:
    """What `training` taught the judge, `validation` chose of its checkpoints, and the export is `compared` on.

    None of them is of the test split, so that no choice between exports spoils it. The compared rows trained nothing
    of the judge itself; its teachers may have seen their votes, and `fidelity.json` says of how many (`taught`).
    """

    training: list[Conversation]
    validation: list[Conversation]
    compared: list[Conversation]


def open_fold(run: Path, fold: int, data: Path, root: Path) -> TrainedJudge:
    """The finished student of a fold of `run`. Raises `UserError` where `data`, and so the folds, changed since."""
    folder = run / f"fold={fold}"
    judge = open_trained(folder, root, "train the student first (make student)")
    if not made_from(judge.manifest, [data], root):
        raise UserError(
            f"{folder} was trained on other data than data.name={data.name} holds now, so nobody can tell "
            "what is held out from it: prepare the data as they were, or train it again with overwrite=true"
        )
    return judge


def rows_of_fold(judge: TrainedJudge, data: Path) -> Rows:
    """The rows of one fold's export, compared on the fold that trained nothing of it."""
    table = load_conversations(data)
    fold = judge.manifest.config["fold"]
    compared = [c for c in table if c.fold == fold and c.votes]
    if not compared:
        raise UserError(f"fold={fold} has no voted conversations to compare the export on: choose another fold")
    return Rows(*training_and_validation(judge, table), compared)


def rows_of_average(folds: Sequence[TrainedJudge], data: Path) -> Rows:
    """The rows of an average's export, compared on the validation rows that trained none of its folds."""
    table = load_conversations(data)
    validation = unseen(folds, table)
    return Rows(training_and_validation(folds[0], table)[0], validation, validation)


def training_and_validation(
    judge: TrainedJudge, conversations: Sequence[Conversation]
) -> tuple[list[Conversation], list[Conversation]]:
    """What trained the judge of the prepared `conversations`, and what chose its checkpoint."""
    config = judge.manifest.config
    return split(conversations[: config["limit"]], config["fold"], config["train"]["validation_share"])


def unseen(folds: Sequence[TrainedJudge], conversations: Sequence[Conversation]) -> list[Conversation]:
    """The voted conversations that chose checkpoints of some of `folds` and trained none of them.

    Folds of one `validation_share` mostly choose the same prompts for validation, so about that share of all is left.
    None of the test split is among them, nor of the fold that a single one leaves out. Raises `UserError` where nothing
    is left.
    """
    split_of = [training_and_validation(fold, conversations) for fold in folds]
    trained = {c.id for training, _ in split_of for c in training}
    chosen = {c.id for _, validation in split_of for c in validation}
    left = [c for c in conversations if c.id in chosen - trained]
    if not left:
        raise UserError(
            f"export.folds: each voted conversation trained one of the {len(folds)} folds, so nothing is left to "
            "compare their average on; train them with a larger train.validation_share"
        )
    return left


def check_alike(folds: Sequence[TrainedJudge]) -> None:
    """Raise `UserError` naming settings other than the fold in which the folds were trained differently, or labels.

    They must share their start above all (base, seed): the mean of factors means something only there.
    """
    configs = [fold.manifest.config for fold in folds]
    names = sorted({*configs[0]} - {"fold"})
    problems = [f"{n}: {[c.get(n) for c in configs]}" for n in names if any(c.get(n) != configs[0][n] for c in configs)]
    known = ["/".join(fold.labels) for fold in folds]
    problems += [f"labels of the votes: {known}"] if len({*known}) > 1 else []
    problems += [f"{fold.folder}: a full tuning has no adapter" for fold in folds if fold.tuned_whole]
    if problems:
        raise UserError("export.folds cannot be averaged:\n" + "\n".join(f"  - {p}" for p in problems))


def methods(folds: Sequence[TrainedJudge]) -> tuple[str, ...]:
    """How `folds` can be averaged: DoRA's magnitudes have a mean, its changes of the weights have none."""
    dora = folds[0].manifest.config["model"]["lora"]["method"] == "dora"
    return METHODS[:1] if dora else METHODS


def of_one_scale(folds: Sequence[TrainedJudge]) -> tuple[dict[str, Adapter], Choice | None]:
    """The folds' adapters by folder and, for pointwise judges, the mean `Choice`, to which their heads
    are brought: a fold counts by what its rewards amount to, not by their size.
    """
    adapters = {str(fold.folder): read_adapter(fold.folder / "adapter") for fold in folds}
    learnt = [fold.choice for fold in folds if fold.choice is not None]
    if not learnt:
        return adapters, None
    scale = float(np.mean([each.scale for each in learnt]))
    scaled = {
        name: replace(adapter, score=adapter.score * (each.scale / scale))
        for (name, adapter), each in zip(adapters.items(), learnt, strict=True)
    }
    log_tie, height = (float(np.mean([getattr(each, name) for each in learnt])) for name in ("log_tie", "height"))
    return scaled, Choice(scale, log_tie, height)


def average(folds: Sequence[TrainedJudge], method: str, root: Path) -> TrainedJudge:
    """The average of the folds' adapters as a judge below `root`/models, made once; its manifest names the folds."""
    identity = {
        **folds[0].manifest.config,
        "average": method,
        "folds": [fold.manifest.config["fold"] for fold in folds],
    }
    folder = average_folder(root, method, [fold.manifest.content for fold in folds])
    artefact = Artefact(folder, "average", identity, [fold.folder for fold in folds], root)
    with artefact.building(wait=True) as lacking:
        if lacking:
            adapters, choice = of_one_scale(folds)
            averaged = average_adapters(adapters, method)
            write_adapter(averaged.adapter, folds[0].folder / "adapter", folder / "adapter")
            if choice is not None:
                write_json(folder / "adapter" / JUDGE, noted_choice(choice))
            write_learned(folder, union(fold.learned() for fold in folds))
            artefact.finish(
                prompt=folds[0].manifest.prompt, extra={"energy": averaged.energy, **noted(folds[0].labels)}
            )
    return open_trained(folder, root, "", stage="average")
