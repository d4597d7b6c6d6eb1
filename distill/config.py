"""The root configuration: all groups of `conf/`, each a dataclass that stands beside its owner."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from core.bounds import Count, Natural, Seed, between
from core.data.config import DataConfig
from core.exported import export_folder
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
    """Where files lie."""

    root: str
    """Folder below which the stages write everything."""


@dataclass(frozen=True)
class Config:
    """Everything `conf/` says. Each group of keys is explained in the module that its class comes from."""

    name: str
    """Name of the experiment, set by `+exp=NAME`. A student lies in students/<name>/fold=<fold> below `paths.root`."""
    run: str
    """`name` plus the overrides that change the trained model (`core/naming.py`). The entry point sets it."""
    role: Literal["student", "teacher"]
    """What `distill.student` trains: a student, which is distilled, or a teacher, which learns from votes alone."""
    fold: Natural
    """The fold that a training leaves out: the model is not trained on it, nor is the checkpoint chosen on it."""
    seed: Seed
    """Seed of the score head, the LoRA matrices, dropout and the order of rows."""
    limit: Count | None
    """Use only the first so many rows, for a trial run; null for all."""
    overwrite: bool
    """Replace a finished artefact that was made with other settings, instead of refusing to."""
    input: str | None
    """File that `distill.predict` reads, in a layout of docs/data.md, with or without votes."""
    output: str | None
    """File that `distill.predict` writes, such as submission.csv; for `distill.kaggle` the bundle's folder."""
    check: str | None
    """An export's folder that `distill.export` only checks against the rules for T4s; null to make an export."""
    benchmark: str | None
    """A file of RewardBench 1 or 2, RM-Bench or JudgeBench that `eval` scores the judges on, in place of votes."""
    coverage: Annotated[float, between(0.5, 0.99)]
    """How often a prediction set shall hold the vote: a set names the labels that the judge cannot rule out."""
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

    def export_folder(self, chosen: str | None = None) -> Path:
        """The export that a user has `chosen` by its folder, or the experiment's own."""
        return Path(chosen) if chosen else export_folder(self.root, self.run, self.export.name)
