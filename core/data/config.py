"""What `conf/data/` holds."""

from dataclasses import dataclass
from typing import Annotated, Literal

from core.bounds import Count, Length, Seed, Share, ShareBelowOne, at_least, between

LayoutName = Literal[
    "lmsys",
    "wsdm",
    "arena",
    "chosen_rejected",
    "rewardbench",
    "graded",
    "pandalm",
    "judgebench",
    "shp",
    "scored",
    "scored_lists",
]  # the rows of `core/data/layouts/table.py`


@dataclass(frozen=True)
class FoldsConfig:
    """How the conversations outside the test split are divided."""

    count: Annotated[int, at_least(2)]
    """Number of folds."""
    split: Literal["grouped", "blackpearl"]
    """grouped: stratified by label, no prompt in two folds; blackpearl: the split that LMSYS's 1st place published,
    scikit-learn's StratifiedKFold(5, seed 2025), where folds share prompts."""
    seed: Seed
    """Seed of the grouped split; another seed gives other folds and the same test split."""


@dataclass(frozen=True)
class SimulateConfig:
    """A simulated arena, whose true distribution is known (`core/data/arena_sim.py`)."""

    conversations: Count
    """How many conversations to simulate."""
    seed: Seed
    """Seed of the simulated conversations and votes."""


@dataclass(frozen=True)
class DataConfig:
    """Where conversations come from: exactly one of `files`, `hub` and `simulate` is set."""

    name: str
    """Name of the prepared data: their folder below data/."""
    files: list[str] | None
    """Paths or globs of files: CSV, TSV, parquet, JSON or JSON Lines, also as .gz or .zst."""
    hub: str | None
    """A data set of the Hugging Face hub, such as lmarena-ai/arena-human-preference-55k, or a folder like one; another
    split than train as NAME:SPLIT or NAME:CONFIGURATION/SPLIT."""
    simulate: SimulateConfig | None
    layout: LayoutName | None
    """How the columns are laid out, a row of the table in docs/data.md; null: recognised by them."""
    grades: Annotated[list[Annotated[float, between(0.5, 1)]], Length(3)]
    """Share of the vote that a better response gets for a grade of 1, 2 and 3, the rest being a tie's."""
    pairs_per_prompt: Count
    """Pairs that are drawn of the scored responses to a prompt, each response about equally often."""
    max_rejected: Share
    """Share of the rows of a source, or of a file to predict, that may be unusable; above it nothing is made."""
    shuffle_sides: list[str]
    """Sources whose a/b order is not random: their sides are exchanged at random, by id."""
    test_share: ShareBelowOne
    """Share of the voted conversations, by whole prompt groups, in the locked test split, from which no stage ever
    learns; 0: no test split."""
    near_duplicates: Annotated[float, between(0.6, 1)] | None
    """Jaccard similarity of word pairs from which first prompts stay in one fold; null: only equal prompts do. Below
    0.6 MinHash misses too many pairs, one in eight at 0.5 (`core/data/near_duplicates.py`)."""
    folds: FoldsConfig
