"""A small evaluation of simulated judges, written as `python -m eval` writes it, without a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.artefacts.building import Artefact
from core.json_files import write_json
from core.records import LABELS, ORDERS, Conversation
from core.scoring import SCORES
from eval import baselines
from eval.fidelity import FIDELITY, fidelity, read_fidelities
from eval.judges import Judges
from eval.leaderboard import bradley_terry
from eval.measuring import measure
from eval.recalibration import Recalibration
from eval.report.lineage import trace
from eval.report.page import write_report
from tests.composing import configured
from tests.eval.simulated_judges import arena, favouring, honest, showing

TRAINED = ("student", "student_no_teacher")


@dataclass(frozen=True)
class Evaluation:
    """What lies in `folder`: metrics.json, predictions.parquet and report.html; artefacts below `root`."""

    root: Path
    folder: Path
    held_out: list[Conversation]
    page: str


def scores(ids: list[str], ab: np.ndarray, ba: np.ndarray, truncated: np.ndarray) -> pl.DataFrame:
    """Logits of both orders, each [n, 3], as a scorer would give them."""
    count = len(ids)
    columns = {
        "id": ids * 2,
        "order": [order for order in ORDERS for _ in range(count)],
        "logits": np.concatenate([ab, ba]).astype(np.float32),
        "prompt_tokens": [100] * 2 * count,
        "truncated": np.tile(truncated, 2),
    }
    return pl.DataFrame(columns, schema=SCORES)


def history(validations: bool = True) -> pl.DataFrame:
    """A training of 90 steps."""
    steps = list(range(1, 91))
    losses = [None if step % 30 or not validations else 1 + 1 / step for step in steps]
    table = {"step": steps, "loss": [2 / step for step in steps], "validation_log_loss": losses}
    return pl.DataFrame(table, schema={"step": pl.Int64, "loss": pl.Float64, "validation_log_loss": pl.Float64})


def evaluate(root: Path, rows: int = 150, repeated: bool = True, **changes: Any) -> Evaluation:
    """Evaluate judges of a simulated arena. `changes` replace arguments of `write_report`."""
    simulated = arena(2 * rows, seed=3)
    conversations, law = simulated.conversations, simulated.law
    if repeated:  # two more people ask the same
        for conversation, again in zip(conversations, np.random.default_rng(0).multinomial(2, law), strict=True):
            assert conversation.votes is not None
            conversation.votes[:] = [x + y for x, y in zip(conversation.votes, again.tolist(), strict=True)]
    held_out, training, known = conversations[:rows], conversations[rows:], law[:rows]
    ids, cut = [c.id for c in held_out], simulated.truncated[:rows]
    long = favouring(known, simulated.sides["longer"][:rows], 1.5)
    said = {
        "teacher": honest(known, 1),
        "student": showing(known, 2, 0.8),
        "student_no_teacher": honest(np.full_like(known, 1 / len(LABELS)), 3),
        "student_w8a8": honest(long, 4),
        "other.one": honest(known, 5),
    }
    judges = Judges({"prior": baselines.prior(training, held_out), "surface": baselines.surface(training, held_out)})
    judges.predictions["bradley_terry"] = bradley_terry(training, held_out)
    judges.predictions |= {name: scores(ids, *pair, cut) for name, pair in said.items()}
    judges.taught |= dict.fromkeys(judges.predictions, 0) | {"student_no_teacher": 40, "other.one": None}
    judges.alike["student"] = 3
    judges.recalibrations["student_w8a8"] = Recalibration((0.8, 0.8, 0.9), (0.0, 0.0, 0.1))
    judges.failed["student_w8a8"] = ["verdicts differs by 0.2000, fidelity.verdicts=0.03"]
    histories = artefacts(root, judges)
    settings = configured("+eval.own.teacher=gpt-4", "eval.bootstrap=200")
    config = settings.eval
    ab, ba = said["student"]
    blur = 0.3 * np.random.default_rng(6).normal(size=(2, *ab.shape))
    lost = fidelity(
        (ab, ba),
        (ab + blur[0], ba + blur[1]),
        ids,
        np.array([c.votes for c in held_out]),
        [c.group for c in held_out],
        settings.fidelity,
        draws=config.bootstrap,
        bins=config.ece_bins,
        seed=0,
    )
    write_json(judges.artefacts["student_w8a8"] / FIDELITY, {**lost, "taught": 7})
    metrics = measure(judges, held_out, pl.DataFrame({"probabilities": known}), config, seed=0)
    folder = root / "eval" / "run"
    folder.mkdir(parents=True)
    write_json(folder / "metrics.json", metrics)
    frames = [frame.select(pl.lit(name).alias("judge"), pl.all()) for name, frame in judges.predictions.items()]
    pl.concat(frames, how="diagonal").write_parquet(folder / "predictions.parquet")
    arguments: dict[str, Any] = {
        "name": "run",
        "metrics": metrics,
        "conversations": {c.id: c for c in held_out},
        "histories": histories,
        "fidelities": read_fidelities(judges.artefacts),
        "lineage": trace(judges.artefacts, root / "data" / "arena", root),
    }
    write_report(folder / "report.html", **arguments | changes)
    return Evaluation(root, folder, held_out, (folder / "report.html").read_text(encoding="utf-8"))


def artefacts(root: Path, judges: Judges) -> dict[str, pl.DataFrame]:
    """Finished folders for the judges, each with its parents, and the trainings' histories."""
    data, store = root / "data" / "arena", root / "logits" / "big"
    students = {name: root / "students" / name / "fold=0" for name in TRAINED}
    export = root / "exports" / "run" / "w8a8"
    for folder, stage, parents in [
        (data, "prepare", []),
        (store, "teacher", [data]),
        *((folder, "student", [data, store]) for folder in students.values()),
        (export, "export", [students["student"]]),
    ]:
        folder.mkdir(parents=True)
        if stage == "student":
            history().write_parquet(folder / "history.parquet")
        Artefact(folder, stage, {}, parents, root).finish(rows={"held_out": 12})
    judges.artefacts |= {"teacher": store, **students, "student_w8a8": export}
    return {name: history() for name in TRAINED}
