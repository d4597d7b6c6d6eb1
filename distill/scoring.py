"""What a scorer is, and how its logits come back to the conversation's own a and b.

A scorer sees token ids and nothing else. Whoever showed it b first permutes its output here, before anything is
stored, so that no later stage can forget to swap.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import polars as pl

from distill.prompts import Renderer
from distill.records import LABELS, ORDERS, Conversation, Order, swap_labels

SCORES = pl.Schema(
    {
        "id": pl.String(),
        "order": pl.String(),
        "logits": pl.Array(pl.Float32, len(LABELS)),
        "prompt_tokens": pl.Int32(),
        "truncated": pl.Boolean(),
    }
)
SWAPPED = list(swap_labels(range(len(LABELS))))


class Scorer(Protocol):
    """Raw three-way logits for prompts given as token ids."""

    def score(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [len(prompts), 3], in the order in which the responses were shown, not activated."""
        ...


def to_own_order(logits: np.ndarray, order: Order) -> np.ndarray:
    """Logits [..., 3] as shown -> logits of the conversation's own a, b, tie."""
    return logits if order == "ab" else logits[..., SWAPPED]


def swap_average(scores: pl.DataFrame) -> pl.DataFrame:
    """One row an id: the plain mean of `logits` over orders (and judges), in order of first appearance."""
    logits = pl.col("logits")
    return scores.group_by("id", maintain_order=True).agg(
        pl.concat_arr([logits.arr.get(i).mean() for i in range(len(LABELS))]).first().alias("logits")
    )


def score_conversations(scorer: Scorer, renderer: Renderer, conversations: Sequence[Conversation]) -> pl.DataFrame:
    """Both orders of every conversation: one row each in `SCORES`, logits in the conversation's own a/b order."""
    prompts = list(renderer.render(conversations))
    shown = scorer.score([p.ids for p in prompts])
    assert shown.shape == (len(prompts), len(LABELS)), shown.shape
    if not np.isfinite(shown).all():
        broken = [p.id for p, row in zip(prompts, shown, strict=True) if not np.isfinite(row).all()]
        raise ValueError(f"the scorer gave logits that are not finite for {broken[:3]}: use scorer dtype=fp32 or bf16")
    return pl.DataFrame(
        {
            "id": [p.id for p in prompts],
            "order": [p.order for p in prompts],
            "logits": np.stack([to_own_order(row, p.order) for p, row in zip(prompts, shown, strict=True)]),
            "prompt_tokens": [len(p.ids) for p in prompts],
            "truncated": [p.truncated for p in prompts],
        },
        schema=SCORES,
    )


def logits_by_order(scores: pl.DataFrame, ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [len(ids), 3] twice: the logits of order ab and of order ba, joined by id.

    Raises `ValueError` naming ids that lack an order.
    """
    found = []
    for order in ORDERS:
        rows = pl.DataFrame({"id": ids}).join(
            scores.filter(pl.col("order") == order), on="id", how="left", maintain_order="left"
        )
        missing = rows.filter(pl.col("logits").is_null())["id"].to_list()
        if missing or len(rows) != len(ids):
            raise ValueError(
                f"order {order}: {len(missing)} of {len(ids)} conversations have no logits, such as {missing[:3]}; "
                "score them again"
            )
        found.append(rows["logits"].to_numpy())
    return found[0], found[1]
