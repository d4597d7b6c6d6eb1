"""What `conf/data/` holds."""

from dataclasses import dataclass
from typing import Annotated, Literal

from core.bounds import Count, Seed, Share, ShareBelowOne, at_least, between


@dataclass(frozen=True)
class FoldsConfig:
    count: Annotated[int, at_least(2)]
    split: Literal["grouped", "blackpearl"]
    seed: Seed


@dataclass(frozen=True)
class SimulateConfig:
    """How many conversations `core/data/arena_sim.py` writes; the true distribution is written down there."""

    conversations: Count
    seed: Seed


@dataclass(frozen=True)
class DataConfig:
    """Where conversations come from: exactly one of `files`, `hub` and `simulate` is set.

    `test_share`: of the voted conversations, in the locked test split, from which no stage ever learns.
    `near_duplicates`, 0.6 to 1 or null for off: the similarity from which first prompts count as one, so that none of
    them lies in another fold than the others (`core/data/near_duplicates.py`). Below 0.6 MinHash misses too many
    pairs: one in eight at 0.5.
    """

    name: str
    files: list[str] | None
    hub: str | None
    simulate: SimulateConfig | None
    ignore_columns: list[str]
    max_rejected: Share
    shuffle_sides: list[str]
    test_share: ShareBelowOne
    near_duplicates: Annotated[float, between(0.6, 1)] | None
    folds: FoldsConfig
