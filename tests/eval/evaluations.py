"""A small evaluation of simulated judges, written as `python -m eval` writes it, without a model."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.artefacts.building import Artefact
from core.models.shapes import Shape
from core.records import LABELS, ORDERS, Conversation
from core.scoring import SCORES
from eval.bootstrap import Resampling
from eval.conformal import fit_thresholds
from eval.evaluation import METRICS, Evaluation, measure
from eval.fidelity import FIDELITY, fidelity
from eval.judges.answers import Answers, ModelSize
from eval.judges.baselines import prior, surface
from eval.judges.bradley_terry import bradley_terry
from eval.judges.panel import Panel
from eval.recalibration import Recalibration
from eval.report.page import Report, write_report
from eval.results import read_result, write_result
from tests.composing import configured
from tests.eval.simulated_judges import arena, favouring, honest, showing

TRAINED = ("student", "student_no_teacher")
SHAPE = Shape(
    *(26, 2304, 8, 4, 256, 9216, 4096, 13),
    capped=True,
    norms=4,
    wide_gains=True,
    parameters=2_600_000_000,
    matrices=2_000_000_000,
    largest=590_000_000,
    language_head=0,
)


@dataclass(frozen=True)
class Evaluated:
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


def evaluate(root: Path, rows: int = 150, repeated: bool = True, truth: str = "votes", **changes: Any) -> Evaluated:
    """Evaluate judges of a simulated arena. `changes` replace what the report shows."""
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
    folders = artefacts(root)
    cooler = Recalibration((0.8, 0.8, 0.9), (0.0, 0.0, 0.1))
    known_of: dict[str, dict[str, Any]] = {
        "student": {"alike": 3, "model": ModelSize(SHAPE, "merged")},
        "student_no_teacher": {"taught": 40},
        "other.one": {"taught": None, "pointwise": True, "model": ModelSize(SHAPE, "w4a16")},
        "student_w8a8": {
            "recalibration": cooler,
            "thresholds": fit_thresholds(*map(cooler, said["student_w8a8"]), known, [c.group for c in held_out]),
            "failed": ["verdicts differs by 0.2000, fidelity.verdicts=0.03"],
            "model": ModelSize(SHAPE, "w8a8"),
        },
    }
    answers = {
        "prior": Answers(prior(training, held_out), taught=0),
        "surface": Answers(surface(training, held_out), taught=0),
        "bradley_terry": Answers(bradley_terry(training, held_out), taught=0),
    }
    for name, pair in said.items():
        of = {"taught": 0, "artefact": folders.get(name), **known_of.get(name, {})}
        answers[name] = Answers(scores(ids, *pair, cut), **of)
    settings = configured("+eval.own.teacher=gpt-4", "eval.bootstrap=200", f"eval.truth={truth}")
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
        resampling=Resampling(config.bootstrap, seed=0),
        taught=7,
    )
    write_result(folders["student_w8a8"] / FIDELITY, lost)
    law = pl.DataFrame({"probabilities": known}) if truth == "votes" else None
    measured = measure(Panel(answers), held_out, law, config, 0, settings.t4, settings.coverage)
    folder = root / "eval" / "run"
    folder.mkdir(parents=True)
    write_result(folder / METRICS, measured)
    frames = [of.scores.select(pl.lit(name).alias("judge"), pl.all()) for name, of in answers.items()]
    pl.concat(frames, how="diagonal").write_parquet(folder / "predictions.parquet")
    report = Report.of("run", measured, held_out, folders, root / "data" / "arena", root)
    write_report(folder / "report.html", replace(report, **changes))
    return Evaluated(root, folder, held_out, (folder / "report.html").read_text(encoding="utf-8"))


def typed(folder: Path, metrics: dict[str, Any]) -> Evaluation:
    """What metrics.json holds, as `python -m eval` reads it."""
    (folder / METRICS).write_text(json.dumps(metrics))
    return read_result(Evaluation, folder / METRICS)


def artefacts(root: Path) -> dict[str, Path]:
    """Finished folders for the judges, each with its parents and the trainings' histories."""
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
    return {"teacher": store, **students, "student_w8a8": export}
