"""Each key of the configuration is explained once, beside its field, and the files of `conf/` hold values."""

import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

from core.explained import explained
from distill.command_line import CONF
from distill.config import Config
from teachers.scorers.config import ScorerConfig

# Files below conf/ that hold keys of another library, or deltas: exp/ and hydra/ are explained where they stand.
ELSEWHERE = {"exp", "hydra"}
# Values whose source or reason is given beside them.
SOURCES = {
    "config.yaml": {"output_subdir"},
    "data/human.yaml": {"shuffle_sides"},
    "plan/a100.yaml": {"memory_gb", "peak_tflops", "node_bandwidth", "network_bandwidth", "conversations"},
    "plan/h100.yaml": {"node_bandwidth", "network_bandwidth"},
    "plan/models/shapes.yaml": {"sliding_window"},
    "predict/default.yaml": {"identical", "one_empty"},
    "t4/default.yaml": {"memory_gb", "tflops", "conversations"},
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


def test_every_key_is_explained_in_two_lines_at_most() -> None:
    texts = explained(Config)
    assert len(texts) > 200
    assert [key for key, text in texts.items() if not text or text.count("\n") > 1] == []


def test_scorers_explain_alike_what_they_share() -> None:
    of_backends = [explained(backend).items() for backend in get_args(ScorerConfig)]
    assert all(len({text for key, text in chain(*of_backends) if key == name}) == 1 for name in ("backend", "dtype"))


def test_files_of_groups_explain_no_keys() -> None:
    files = [path for path in Path(CONF).glob("**/*.yaml") if path.relative_to(CONF).parts[0] not in ELSEWHERE]
    commented = {str(path.relative_to(CONF)): {*COMMENTED.findall(path.read_text())} for path in files}
    assert {name: keys for name, keys in commented.items() if keys} == SOURCES
