"""Each key of the configuration is explained once, beside its field, and the files of `conf/` hold values."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from core.data.config import DataConfig
from core.explained import explained
from core.prompts import PromptConfig
from deploy.predicting.config import PredictConfig
from deploy.serving.config import ServeConfig
from distill.config import PathsConfig
from distill.entry_point import CONF
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

# Files below conf/ that hold keys of another library, or deltas: exp/ and hydra/ are explained where they stand.
ELSEWHERE = {"exp", "hydra"}
TO_DO = {"scorer", "teacher"}
# Values whose source or reason is given beside them.
SOURCES = {
    "config.yaml": {"output_subdir"},
    "data/human.yaml": {"shuffle_sides"},
    "plan/a100.yaml": {"memory_gb", "peak_tflops", "node_bandwidth", "network_bandwidth", "conversations"},
    "plan/h100.yaml": {"node_bandwidth", "network_bandwidth"},
    "plan/models/shapes.yaml": {"sliding_window"},
    "predict/default.yaml": {"identical", "one_empty"},
    "t4/default.yaml": {"memory_gb", "conversations"},
}
COMMENTED = re.compile(r"^\s*(\w+):.*\s# ", re.MULTILINE)


@dataclass(frozen=True)
class Apples:
    """Apples.

    More on apples.
    """

    kind: Literal["apple"]
    """Always apple."""
    weight: float  # a comment
    """In kg,
    of all."""


@dataclass(frozen=True)
class Pears:
    """Pears."""

    kind: Literal["pear"]
    """Always apple."""
    ripe: bool


@dataclass(frozen=True)
class Basket:
    apples: Apples
    either: Apples | Pears | None
    """One or the other."""

    @property
    def full(self) -> bool:
        """No key."""
        return True


def test_keys_are_explained_by_the_docstring_below_or_by_their_group() -> None:
    assert explained(Basket) == {
        "apples": "Apples.",
        "apples.kind": "Always apple.",
        "apples.weight": "In kg,\nof all.",
        "either": "One or the other.",
        "either.kind": "Always apple.",
        "either.weight": "In kg,\nof all.",
        "either.ripe": "",
    }


@pytest.mark.parametrize(
    "kind",
    [
        *(DataConfig, PromptConfig, ServeConfig, PathsConfig, PlanConfig),
        *(CanariesConfig, EvalConfig, FidelityConfig, ExportConfig, T4Config, PredictConfig),
        *(ModelConfig, TrainConfig, LossConfig, OptimizerConfig, EngineConfig, TrackerConfig, SweepConfig),
    ],
)
def test_every_key_is_explained_in_two_lines_at_most(kind: type) -> None:
    texts = explained(kind)
    assert texts
    assert [key for key, text in texts.items() if not text or text.count("\n") > 1] == []


def test_files_of_groups_explain_no_keys() -> None:
    files = [path for path in Path(CONF).glob("**/*.yaml") if path.relative_to(CONF).parts[0] not in ELSEWHERE | TO_DO]
    commented = {str(path.relative_to(CONF)): {*COMMENTED.findall(path.read_text())} for path in files}
    assert {name: keys for name, keys in commented.items() if keys} == SOURCES
