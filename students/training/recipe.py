"""What one training is told: the configuration, unpacked by the entry point."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.artefacts.building import Artefact
from core.prompts import PromptConfig
from students.training.config import (
    EngineConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrackerConfig,
    TrainConfig,
)
from students.training.optuna_studies import Trial


@dataclass(frozen=True)
class Recipe:
    """How the loop trains."""

    seed: int
    train: TrainConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    engine: EngineConfig


@dataclass(frozen=True)
class SoftTargets:
    """The store `folder` of a teacher's logits, and which of them are learned from (`core/store/targets.py`).

    `same_prompt`: whether its teacher has to have been shown the template that is trained on.
    """

    folder: Path
    rows: str
    max_entropy: float | None
    same_prompt: bool


@dataclass(frozen=True)
class TrainingRun:
    """One judge on one fold, left out of `data`. `soft_targets` None: the votes alone.

    `identity` decides what is trained: a finished folder with another one is refused. `configuration` is all that was
    configured, for trackers to show. `trial` None: no search.
    """

    root: Path
    folder: Path
    role: str
    name: str
    fold: int
    limit: int | None
    overwrite: bool
    data: Path
    soft_targets: SoftTargets | None
    prompt: PromptConfig
    model: ModelConfig
    recipe: Recipe
    tracker: TrackerConfig
    trial: Trial | None
    identity: Mapping[str, Any]
    configuration: Mapping[str, Any]

    @property
    def artefact(self) -> Artefact:
        """What is made: of the data and the teacher's logits."""
        parents = [self.data] if self.soft_targets is None else [self.data, self.soft_targets.folder]
        return Artefact(self.folder, "student", self.identity, parents, self.root)  # a teacher's stage, too
