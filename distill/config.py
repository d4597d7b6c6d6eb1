"""The root configuration: all groups of `conf/`, each a dataclass that stands beside its owner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.bounds import Count, Natural, Seed
from core.data.config import DataConfig
from core.prompts import PromptConfig
from deploy.predicting.config import PredictConfig
from deploy.serving.config import ServeConfig
from distill.plan.config import PlanConfig
from eval.config import CanariesConfig, EvalConfig, FidelityConfig
from students.export.config import ExportConfig, T4Config
from students.training.config import (
    EngineConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    SweepConfig,
    TrackerConfig,
    TrainConfig,
)
from teachers.config import TeacherConfig
from teachers.scorers.config import ScorersConfig


@dataclass(frozen=True)
class PathsConfig:
    root: str


@dataclass(frozen=True)
class Config:
    """Everything `conf/` says.

    `run` is `name` plus the overrides that change the trained model (see `core/naming.py`). `canaries`: what becomes of
    an export that this machine computes differently (see `eval/canaries/checking.py`).
    """

    name: str
    run: str
    role: Literal["student", "teacher"]
    fold: Natural
    seed: Seed
    limit: Count | None
    overwrite: bool
    input: str | None
    output: str | None
    check: str | None
    data: DataConfig
    prompt: PromptConfig
    model: ModelConfig
    train: TrainConfig
    loss: LossConfig
    optimizer: OptimizerConfig
    engine: EngineConfig
    teacher: TeacherConfig
    scorers: ScorersConfig
    export: ExportConfig
    fidelity: FidelityConfig
    canaries: CanariesConfig
    eval: EvalConfig
    predict: PredictConfig
    serve: ServeConfig
    plan: PlanConfig
    t4: T4Config
    tracker: TrackerConfig
    sweep: SweepConfig
    paths: PathsConfig

    @property
    def root(self) -> Path:
        return Path(self.paths.root)
