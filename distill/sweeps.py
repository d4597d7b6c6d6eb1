"""All runs of an experiment side by side: python -m distill.sweeps +exp=demo

Prints a table, best first, and writes sweeps/<role>s/<name>/sweep.parquet and sweeps.html, a page that loads nothing.
Every number is read from the runs' own files.
"""

from typing import TYPE_CHECKING

from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    import polars as pl
    from rich.table import Table

READS = "name role paths"


def main(config: Config) -> None:
    from rich.console import Console

    from students.sweeps.page import write_page
    from students.sweeps.runs import find_runs, over_folds, read_run, tabulated

    # Read
    trained = config.root / f"{config.role}s"
    runs = tabulated([read_run(folder) for folder in find_runs(trained, config.name)])

    # Write
    folder = config.root / "sweeps" / f"{config.role}s" / config.name
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_parquet(folder / "sweep.parquet")
    write_page(folder / "sweeps.html", config.name, runs, trained)

    # Print
    console = Console()
    console.print(printed(config.name, runs))
    for line in over_folds(runs):
        console.print(line)
    console.print(f"page: {folder / 'sweeps.html'}")


def printed(name: str, runs: "pl.DataFrame") -> "Table":
    """The runs for the terminal, with the overrides in which they differ."""
    from rich.table import Table

    from students.sweeps.runs import varied

    keys = varied(runs)
    table = Table(
        title=name,
        caption="validation log loss in nats; of pruned and unfinished runs, that of the judge kept so far",
    )
    for heading in (*keys, "fold", "state", "steps", "best step", "log loss", "hours"):
        table.add_column(heading, justify="left" if heading == "state" else "right", overflow="fold")
    for run in runs.iter_rows(named=True):
        overrides = (run[key] for key in keys)
        table.add_row(
            *("" if value is None else f"{value:g}" if isinstance(value, float) else value for value in overrides),
            *(str(run["fold"]), run["state"], str(run["steps"]), str(run["best_step"])),
            *(f"{run['validation_log_loss']:.4f}", f"{run['hours']:.2f}"),
            style=None if run["state"] == "finished" else "dim",
        )
    return table


if __name__ == "__main__":
    entry_point(main, READS)()
