"""What the rows of a store are: soft logits or rewards, and by which columns a row is unique."""

from collections.abc import Iterable

import polars as pl

from core.scoring import SCORES

LOGITS = pl.Schema(
    {
        **SCORES,
        "judge_fold": pl.Int32(),
        "in_sample": pl.Boolean(),
        "fingerprint": pl.UInt64(),  # Conversation.sided_fingerprint(): the texts that the row was scored for
        "outside": pl.Float32(),  # probability mass that `label_tokens` found outside the labels; null for score heads
    }
)
REWARDS = pl.Schema(
    {
        "id": pl.String(),
        "response": pl.String(),
        "rewards": pl.List(pl.Float32),
        "prompt_tokens": pl.Int32(),
        "truncated": pl.Boolean(),
        "judge_fold": pl.Int32(),
        "fingerprint": pl.UInt64(),
    }
)


def key(schema: Iterable[str]) -> list[str]:
    """The columns by which the rows of a store are unique."""
    return ["id", view(schema), writer_column(schema)]


def view(schema: Iterable[str]) -> str:
    """The column that tells apart the two rows of a conversation: which order, or which response, the judge saw."""
    return "order" if "order" in schema else "response"


def writer_column(schema: Iterable[str]) -> str:
    """The column that says who wrote a row: its judge's fold, or one of the processes that share a judge's work."""
    return "judge_fold" if "judge_fold" in schema else "process"
