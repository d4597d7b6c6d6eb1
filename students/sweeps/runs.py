"""What the runs of one experiment came to, read from their own metrics.json, history.parquet and manifest.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import polars as pl

from core.artefacts.manifest import MANIFEST
from core.errors import UserError
from core.tables import read_parquet

State = Literal["finished", "pruned", "unfinished"]


@dataclass(frozen=True)
class Run:
    """What one run came to. Of a pruned or unfinished one, the figures are those of the judge kept so far.

    `hours` are those of the optimiser's steps, without validations and restarts.
    """

    run: str
    fold: int
    state: State
    steps: int
    best_step: int
    validation_log_loss: float
    hours: float


OWN = tuple(field.name for field in fields(Run))


def find_runs(trained: Path, name: str) -> list[Path]:
    """The folders of all runs of experiment `name` that have validated. Raises `UserError` where there is none."""
    variants = sorted(path for path in trained.glob("*") if path.name.split(",")[0] == name)
    folders = [fold for variant in variants for fold in sorted(variant.glob("fold=*"))]
    validated = [folder for folder in folders if (folder / "history.parquet").exists() and len(validations(folder))]
    if not validated:
        raise UserError(f"{trained} has no runs of {name}: train some with python -m distill.student -m +exp={name}")
    return validated


def validations(folder: Path) -> pl.DataFrame:
    """The steps of a run's history after which it was validated."""
    return read_parquet(folder / "history.parquet").drop_nulls("validation_log_loss")


def read_run(folder: Path) -> Run:
    """What the files of a run say."""
    history, metrics = read_parquet(folder / "history.parquet"), folder / "metrics.json"
    said = json.loads(metrics.read_text()) if metrics.exists() else {}
    steps = history["step"][-1]
    state = state_of(folder, steps, said)
    if state == "unfinished":
        kept = history.filter("validation_kept").row(-1, named=True)
        said = {"steps": steps, "best_step": kept["step"], "validation_log_loss": kept["validation_log_loss"]}
    return Run(
        run=folder.parent.name,
        fold=int(folder.name.removeprefix("fold=")),
        state=state,
        steps=said["steps"],
        best_step=said["best_step"],
        validation_log_loss=said["validation_log_loss"],
        hours=float(history["seconds"].sum()) / 3600,
    )


def state_of(folder: Path, steps: int, metrics: Mapping[str, Any]) -> State:
    """A run is pruned only while nothing has trained it further."""
    if (folder / MANIFEST).exists():
        return "finished"
    return "pruned" if metrics.get("pruned") and metrics["steps"] == steps else "unfinished"


def tabulated(runs: list[Run]) -> pl.DataFrame:
    """One row a run, the least validation log loss (nats) first: `OWN`, then a column for each override's key.

    A run without an override has null in its column. A column holds numbers where all of its values are numbers.
    """
    table = pl.DataFrame([vars(run) for run in runs])
    overrides = [dict(override.split("=", 1) for override in each.run.split(",")[1:]) for each in runs]
    for key in sorted({key for run in overrides for key in run}):
        values = pl.Series(key, [run.get(key) for run in overrides], pl.String)
        numbers = values.cast(pl.Float64, strict=False)
        table = table.with_columns(values if numbers.null_count() > values.null_count() else numbers)
    return table.sort("validation_log_loss", "run", "fold")


def varied(runs: pl.DataFrame) -> list[str]:
    """The overrides in which the runs differ."""
    return [column for column in runs.columns if column not in OWN and runs[column].n_unique() > 1]


def over_folds(runs: pl.DataFrame) -> list[str]:
    """A line for each variant that was trained to the end on several folds: mean and standard deviation."""
    lines = []
    for _, rows in runs.filter(pl.col("state") == "finished").sort("fold").group_by("run", maintain_order=True):
        if len(rows) > 1:
            losses, folds = rows["validation_log_loss"].to_list(), ", ".join(map(str, rows["fold"]))
            spread = f"mean log loss {fmean(losses):.4f} over folds {folds}, deviation {stdev(losses):.4f}"
            lines.append(f"{rows['run'][0]}: {spread}")
    return lines
