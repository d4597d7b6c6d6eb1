"""How far an experiment is: python -m distill.status +exp=demo

One table: each stage of the experiment, whether its artefact is done, stale, being made, interrupted or missing, what
came out, its disk space, when it was made; and the next command. It only looks: nothing is written, nothing is locked,
so it can run while stages do. `done` means that the stage, run again, would find nothing to do.
"""

import shutil
import sys
from datetime import datetime
from typing import TYPE_CHECKING

from distill.config import Config
from distill.entry_point import entry_point

if TYPE_CHECKING:
    from rich.table import Table

    from distill.status.stages import Stage

WIDEST = 100
STYLES = {"done": "green", "failed": "red", "stale": "yellow", "running": "cyan", "interrupted": "yellow"}
READS = "name paths"


def main(config: Config) -> None:
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from distill.status.following import following
    from distill.status.stages import stages_of

    stages = list(stages_of(config))
    width = min(WIDEST, shutil.get_terminal_size((WIDEST, 0)).columns) if sys.stdout.isatty() else WIDEST
    console = Console(width=width, highlight=False, markup=False)
    console.print(table(config, stages))
    console.print(following(config, stages, HydraConfig.get().overrides.task), soft_wrap=True)


def table(config: Config, stages: "list[Stage]") -> "Table":
    """A row for each stage."""
    from rich.table import Table
    from rich.text import Text

    found = Table(title=f"{config.run}, below {config.root}", title_justify="left", box=None, pad_edge=False)
    for heading in ("stage", "state", "what came out, or why not"):
        found.add_column(heading, overflow="fold")
    found.add_column("disk", justify="right", no_wrap=True)
    found.add_column("made", no_wrap=True)
    for stage in stages:
        state = stage.state
        moment = state.since if state.since is not None else stage.made
        found.add_row(
            stage.name,
            Text(state.name, STYLES.get(state.name, "dim")),
            "; ".join(filter(None, (stage.figure, state.reason))),
            "" if stage.bytes is None else shown_bytes(stage.bytes),
            "" if moment is None else f"{datetime.fromtimestamp(moment):%Y-%m-%d %H:%M}",
        )
    return found


def shown_bytes(count: float) -> str:
    """A size with a unit, to two digits at least."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


if __name__ == "__main__":
    entry_point(main, READS, only_looks=True)()
