"""All runs of an experiment side by side: python -m distill.sweeps +exp=demo

Prints a table, best first, and writes sweeps/<role>s/<name>/sweep.parquet and sweeps.html, one page that needs nothing
beside it. Every number is read from the runs' own metrics.json, history.parquet and manifest.json.
"""

import json
import logging
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    import polars as pl
    from plotly.graph_objects import Figure
    from rich.table import Table

log = logging.getLogger(__name__)
COLOURS = {"finished": "#1f6f8b", "pruned": "#c8553d", "unfinished": "#9a9a9a"}
OWN = ("run", "fold", "state", "steps", "best_step", "validation_log_loss", "hours")


def main(config: Config) -> None:
    from rich.console import Console

    folder = config.root / "sweeps" / f"{config.role}s" / config.name
    runs = summary(find_runs(config.root / f"{config.role}s", config.name))
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_parquet(folder / "sweep.parquet")
    write_page(folder / "sweeps.html", config.name, runs, config.root / f"{config.role}s")
    console = Console()
    console.print(table(config.name, runs))
    for line in over_folds(runs):
        console.print(line)
    console.print(f"page: {folder / 'sweeps.html'}")


def find_runs(trained: Path, name: str) -> list[Path]:
    """Folders of all runs of experiment `name` below `trained`. Raises `UserError` where there is none."""
    variants = sorted(p for p in trained.glob("*") if p.name.split(",")[0] == name)
    found = [f for run in variants for f in sorted(run.glob("fold=*")) if has_validated(f)]
    if not found:
        raise UserError(f"{trained} has no runs of {name}: train some with python -m distill.student -m +exp={name}")
    return found


def has_validated(folder: Path) -> bool:
    """Whether there is anything to say of a run yet."""
    from core.tables import read_parquet

    curve = folder / "history.parquet"
    return curve.exists() and read_parquet(curve)["validation_log_loss"].count() > 0


def summary(folders: list[Path]) -> "pl.DataFrame":
    """One row a run, the least validation log loss (nats) first: `OWN`, then a column for each override's key.

    `hours` are those of the optimiser steps, validations and restarts not counted. Where a run has not got an override
    the column holds null; numbers are numbers where all values of a key are.
    """
    import polars as pl

    rows = [{**outcome(folder), "overrides": overrides(folder.parent.name)} for folder in folders]
    keys = sorted({key for row in rows for key in row["overrides"]})
    frame = pl.DataFrame([{name: row[name] for name in OWN} for row in rows])
    for key in keys:
        values = pl.Series(key, [row["overrides"].get(key) for row in rows], pl.String)
        numbers = values.cast(pl.Float64, strict=False)
        frame = frame.with_columns(values if numbers.null_count() > values.null_count() else numbers)
    return frame.sort("validation_log_loss", "run", "fold")


def overrides(run: str) -> dict[str, str]:
    """The overrides that a run's name holds."""
    return dict(override.split("=", 1) for override in run.split(",")[1:])


def outcome(folder: Path) -> dict[str, Any]:
    """What a run's files say of it, in `OWN`. Of pruned and unfinished runs: that of the judge kept so far."""
    from core.artefacts.contents import MANIFEST
    from core.tables import read_parquet

    history = read_parquet(folder / "history.parquet")
    metrics = folder / "metrics.json"
    said: dict[str, Any] = json.loads(metrics.read_text()) if metrics.exists() else {}
    steps, state = history["step"][-1], "finished"
    if not (folder / MANIFEST).exists():
        state = "pruned" if said.get("pruned") and said["steps"] == steps else "unfinished"
    if state == "unfinished":
        kept = history.filter("validation_kept").row(-1, named=True)
        said = {"steps": steps, "best_step": kept["step"], "validation_log_loss": kept["validation_log_loss"]}
    return {
        "run": folder.parent.name,
        "fold": int(folder.name.removeprefix("fold=")),
        "state": state,
        **{name: said[name] for name in ("steps", "best_step", "validation_log_loss")},
        "hours": history["seconds"].sum() / 3600,
    }


def varied(runs: "pl.DataFrame") -> list[str]:
    """The overrides in which the runs differ."""
    return [column for column in runs.columns if column not in OWN and runs[column].n_unique() > 1]


def table(name: str, runs: "pl.DataFrame") -> "Table":
    """The summary for the terminal."""
    from rich.table import Table

    keys = varied(runs)
    result = Table(
        title=name, caption="validation log loss in nats; of pruned and unfinished runs that of the judge kept so far"
    )
    for heading in (*keys, "fold", "state", "steps", "best step", "log loss", "hours"):
        result.add_column(heading, justify="left" if heading == "state" else "right", overflow="fold")
    for row in runs.iter_rows(named=True):
        result.add_row(
            *("" if row[key] is None else f"{row[key]:g}" if isinstance(row[key], float) else row[key] for key in keys),
            *(str(row["fold"]), row["state"], str(row["steps"]), str(row["best_step"])),
            *(f"{row['validation_log_loss']:.4f}", f"{row['hours']:.2f}"),
            style=None if row["state"] == "finished" else "dim",
        )
    return result


def over_folds(runs: "pl.DataFrame") -> list[str]:
    """A line for each variant that was trained to the end on several folds: mean and standard deviation."""
    import polars as pl

    lines = []
    for _, rows in runs.filter(pl.col("state") == "finished").sort("fold").group_by("run", maintain_order=True):
        if len(rows) > 1:
            losses, folds = rows["validation_log_loss"].to_list(), ", ".join(map(str, rows["fold"]))
            mean, deviation = fmean(losses), stdev(losses)
            lines.append(f"{rows['run'][0]}: mean log loss {mean:.4f} over folds {folds}, deviation {deviation:.4f}")
    return lines


def write_page(path: Path, name: str, runs: "pl.DataFrame", trained: Path) -> None:
    """The validation curves and log loss against each searched number, with plotly's library in the page itself."""
    figure = draw(name, runs, trained)
    partial = path.with_name(f".{path.name}.partial")
    figure.write_html(partial, include_plotlyjs=True, config={"displaylogo": False, "responsive": True})
    partial.replace(path)


def draw(name: str, runs: "pl.DataFrame", trained: Path) -> "Figure":
    """Row 1: validation log loss by step, one line a run; then one panel for each override, one point a run."""
    import polars as pl
    from plotly.graph_objects import Figure
    from plotly.subplots import make_subplots

    from core.tables import read_parquet

    keys = varied(runs)
    titles = ("validation log loss (nats) by optimiser step", *(f"log loss by {key}" for key in keys))
    figure: Figure = make_subplots(rows=1 + len(keys), cols=1, subplot_titles=titles)
    figure.update_layout(title=name, template="plotly_white", height=380 * (1 + len(keys)))
    named = set()
    for row in runs.iter_rows(named=True):
        folder = trained / row["run"] / f"fold={row['fold']}"
        curve = read_parquet(folder / "history.parquet").drop_nulls("validation_log_loss")
        look = {"legendgroup": row["state"], "name": row["state"], "showlegend": row["state"] not in named}
        named.add(row["state"])
        label = f"{row['run'].replace(',', '<br>')}<br>fold {row['fold']}"
        hover = {"text": label, "hovertemplate": "%{text}<br>%{x}: %{y:.4f}<extra></extra>"}
        figure.add_scatter(
            x=curve["step"].to_list(),
            y=curve["validation_log_loss"].to_list(),
            mode="lines+markers",
            line={"color": COLOURS[row["state"]]},
            **{**look, **hover, "text": [label] * len(curve)},
            row=1,
            col=1,
        )
        for panel, key in enumerate(keys, 2):
            if row[key] is not None:
                figure.add_scatter(
                    x=[row[key]],
                    y=[row["validation_log_loss"]],
                    mode="markers",
                    marker={"color": COLOURS[row["state"]], "size": 9},
                    **{**look, **hover, "showlegend": False},
                    row=panel,
                    col=1,
                )
    for panel, key in enumerate(keys, 2):
        values = runs[key].drop_nulls()
        if values.dtype == pl.Float64 and values.min() > 0 and values.max() >= 20 * values.min():  # type: ignore[operator]
            figure.update_xaxes(type="log", row=panel, col=1)
    return figure


if __name__ == "__main__":
    entry_point(main)()
