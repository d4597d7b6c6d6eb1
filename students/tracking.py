"""Where training metrics go while it runs: wandb or nowhere. `history.parquet` is written in any case."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from distill.config import Config, to_mapping


class Tracker(Protocol):
    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def finish(self) -> None: ...


class Silent:
    def log(self, values: Mapping[str, float], step: int) -> None:
        pass

    def finish(self) -> None:
        pass


class Wandb:
    """A wandb run, offline below `folder` unless WANDB_API_KEY is set."""

    def __init__(self, config: Config, folder: Path):
        import wandb

        self.run = wandb.init(
            project=config.tracker.project,
            name=f"{config.role}/{config.run}/fold={config.fold}",
            config=to_mapping(config),
            dir=folder,
            mode="online" if os.environ.get("WANDB_API_KEY") else "offline",
            settings=wandb.Settings(silent=True, console="off"),
            reinit="finish_previous",
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def finish(self) -> None:
        self.run.finish()


def open_tracker(config: Config, folder: Path, rank: int) -> Tracker:
    """The tracker that `config.tracker` names, on the first rank only."""
    wanted: dict[str, Any] = {"wandb": lambda: Wandb(config, folder), "none": Silent}
    return wanted[config.tracker.backend]() if rank == 0 else Silent()
