"""The runs of one experiment as a page: validation curves, and log loss against each override."""

from pathlib import Path
from typing import Any

import polars as pl
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from students.sweeps.runs import validations, varied

COLOURS = {"finished": "#1f6f8b", "pruned": "#c8553d", "unfinished": "#9a9a9a"}
LOG_SCALE_FROM = 20  # times the least value: numbers that far apart get a logarithmic axis


def write_page(path: Path, name: str, runs: pl.DataFrame, trained: Path) -> None:
    """Write `draw`'s figure with plotly's library in the page, so that it loads nothing."""
    partial = path.with_name(f".{path.name}.partial")
    options = {"displaylogo": False, "responsive": True}
    draw(name, runs, trained).write_html(partial, include_plotlyjs=True, config=options)
    partial.replace(path)


def draw(name: str, runs: pl.DataFrame, trained: Path) -> Figure:
    """Panel 1: validation log loss by step, one line a run; then a panel for each override, one point a run.

    `runs` are those below folder `trained`, as `runs.tabulated` has them.
    """
    keys = varied(runs)
    titles = ("validation log loss (nats) by optimiser step", *(f"log loss by {key}" for key in keys))
    figure: Figure = make_subplots(rows=1 + len(keys), cols=1, subplot_titles=titles)
    figure.update_layout(title=name, template="plotly_white", height=380 * (1 + len(keys)))
    in_legend: set[str] = set()
    for run in runs.iter_rows(named=True):
        add_run(figure, run, keys, trained, in_legend=run["state"] not in in_legend)
        in_legend.add(run["state"])
    for panel, key in enumerate(keys, 2):
        if spans_magnitudes(runs[key].drop_nulls()):
            figure.update_xaxes(type="log", row=panel, col=1)
    return figure


def add_run(figure: Figure, run: dict[str, Any], keys: list[str], trained: Path, *, in_legend: bool) -> None:
    """Draw one run in every panel that it has a value for."""
    curve = validations(trained / run["run"] / f"fold={run['fold']}")
    label = f"{run['run'].replace(',', '<br>')}<br>fold {run['fold']}"
    style = {"legendgroup": run["state"], "name": run["state"]}
    style["hovertemplate"] = "%{text}<br>%{x}: %{y:.4f}<extra></extra>"
    figure.add_scatter(
        x=curve["step"].to_list(),
        y=curve["validation_log_loss"].to_list(),
        text=[label] * len(curve),
        mode="lines+markers",
        line={"color": COLOURS[run["state"]]},
        showlegend=in_legend,
        row=1,
        col=1,
        **style,
    )
    for panel, key in enumerate(keys, 2):
        if run[key] is not None:
            figure.add_scatter(
                x=[run[key]],
                y=[run["validation_log_loss"]],
                text=label,
                mode="markers",
                marker={"color": COLOURS[run["state"]], "size": 9},
                showlegend=False,
                row=panel,
                col=1,
                **style,
            )


def spans_magnitudes(values: pl.Series) -> bool:
    """Whether positive numbers lie so far apart that a linear axis would crowd most of them."""
    if values.dtype != pl.Float64 or values.min() <= 0:  # type: ignore[operator]
        return False
    return bool(values.max() >= LOG_SCALE_FROM * values.min())  # type: ignore[operator]
