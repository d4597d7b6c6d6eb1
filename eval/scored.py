"""Which conversations an evaluation scores, and which it fits its baselines on."""

import logging
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from core.data.arena_sim import TRUE_DISTRIBUTION
from core.errors import UserError
from core.records import TEST, Conversation
from core.tables import read_parquet

log = logging.getLogger(__name__)


def scored_and_training(
    conversations: Sequence[Conversation], split: str, fold: int
) -> tuple[str, list[Conversation], list[Conversation]]:
    """(split, scored, training): the voted conversations to score, and those that baselines may learn from.

    `split="test"` is the locked test split, from which nobody has learned; where the data have none it is
    fold `fold`, as with `split="fold"`, and that is told. Raises `UserError` where nobody voted on those rows.
    """
    voted = [c for c in conversations if c.votes]
    if split == "test" and not any(c.fold == TEST for c in voted):
        log.warning(
            "these data have no test split: fold %d is scored, whose votes the judges' teachers may have seen; "
            "data.test_share makes one",
            fold,
        )
        split = "fold"
    scored = [c for c in voted if c.fold == (TEST if split == "test" else fold)]
    if not scored:
        raise UserError(f"fold={fold} of these data has no votes to evaluate on: choose another fold or data set")
    return split, scored, [c for c in conversations if c.fold not in (TEST, scored[0].fold)]


def true_distribution(data: Path, conversations: Sequence[Conversation]) -> pl.DataFrame | None:
    """The probabilities that a simulated arena drew its votes from, one row a conversation; None for other data.

    They are one more judge, and their entropy is the bound.
    """
    if not (data / TRUE_DISTRIBUTION).exists():
        return None
    ids = pl.DataFrame({"id": [c.id for c in conversations]})
    return ids.join(read_parquet(data / TRUE_DISTRIBUTION), on="id", how="left", maintain_order="left")
