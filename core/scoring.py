"""What a scorer is, and how its logits come back to the conversation's own a and b.

A scorer sees token ids and nothing else. Whoever showed it b first permutes its output here, before anything is
stored, so that no later stage can forget to swap.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import polars as pl

from core.errors import UserError
from core.labels import Labels, among
from core.prompts import Rendered, Renderer
from core.records import LABELS, ORDERS, Conversation, Order, swap_labels

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
    """Raw logits for prompts given as token ids. `tokens_cached`: how many of them a prefix cache has spared so far."""

    @property
    def tokens_cached(self) -> int: ...

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """(position in `prompts`, float32 [outputs]) of each prompt, in whatever order they finish.

        A judge has three outputs, in the order in which the responses were shown, not activated. A scorer draws
        prompts as it needs them, a bounded number ahead of what it has finished: when `prompts` ends, little is left
        to wait for. Raises `UserError` for a prompt that it cannot take, and where its engine has died.
        """
        ...


def score(scorer: Scorer, prompts: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits of all `prompts`: float32 [len(prompts), outputs]; [0, 3] for none."""
    rows = dict(scorer.stream(prompts))
    assert len(rows) == len(prompts), f"{len(prompts)} prompts, {len(rows)} results"
    return np.stack([rows[i] for i in range(len(prompts))]) if rows else np.empty((0, len(LABELS)), np.float32)


def to_own_order(logits: np.ndarray, order: Order) -> np.ndarray:
    """Logits [..., 3] as shown -> logits of the conversation's own a, b, tie."""
    return logits if order == "ab" else logits[..., SWAPPED]


def mean_logits() -> pl.Expr:
    """The mean of column `logits` over a group's rows, as an aggregation."""
    return pl.concat_arr([pl.col("logits").arr.get(i).mean() for i in range(len(LABELS))]).first().alias("logits")


def swap_average(scores: pl.DataFrame) -> pl.DataFrame:
    """One row an id: the plain mean of `logits` over orders (and judges), in order of first appearance."""
    return scores.group_by("id", maintain_order=True).agg(mean_logits())


def scored_row(prompt: Rendered, logits: np.ndarray) -> dict[str, Any]:
    """One row in `SCORES`, from a prompt and its logits [3] as shown."""
    return {
        "id": prompt.id,
        "order": prompt.order,
        "logits": to_own_order(logits, prompt.order),
        "prompt_tokens": len(prompt.ids),
        "truncated": prompt.truncated,
    }


def score_conversations(scorer: Scorer, renderer: Renderer, conversations: Sequence[Conversation]) -> pl.DataFrame:
    """Both orders of every conversation: one row each in `SCORES`, logits in the conversation's own a/b order."""
    prompts = list(renderer.render(conversations))
    shown = score(scorer, [p.ids for p in prompts])
    check_finite(shown, [p.id for p in prompts])
    return pl.DataFrame([scored_row(p, row) for p, row in zip(prompts, shown, strict=True)], schema=SCORES)


def check_length(position: int, prompt: Sequence[int], max_tokens: int) -> None:
    """Raise `UserError` for a prompt of no tokens, or of more than a scorer takes."""
    if not 0 < len(prompt) <= max_tokens:
        raise UserError(
            f"prompt {position} has {len(prompt)} tokens, this scorer takes 1 to {max_tokens}: "
            "render prompts with that budget"
        )


def check_finite(logits: np.ndarray, ids: Sequence[str]) -> None:
    """Raise `UserError` naming the conversations whose logits [rows, outputs] hold NaN or infinities."""
    broken = [i for i, row in zip(ids, logits, strict=True) if not np.isfinite(row).all()]
    if broken:
        raise UserError(f"the scorer gave logits that are not finite for {broken[:3]}: use scorer dtype=fp32 or bf16")


def logits_by_order(scores: pl.DataFrame, ids: Sequence[str], labels: Labels = LABELS) -> tuple[np.ndarray, np.ndarray]:
    """float32 [len(ids), labels] twice: the logits of `labels` in order ab and in order ba, joined by id.

    Raises `UserError` naming ids that lack an order.
    """
    found = []
    for order in ORDERS:
        rows = pl.DataFrame({"id": ids}, schema={"id": pl.String}).join(
            scores.filter(pl.col("order") == order), on="id", how="left", maintain_order="left"
        )
        missing = rows.filter(pl.col("logits").is_null())["id"].to_list()
        if missing or len(rows) != len(ids):
            raise UserError(
                f"order {order}: {len(missing)} of {len(ids)} conversations have no logits, such as {missing[:3]}; "
                "score them again"
            )
        found.append(among(rows["logits"].to_numpy(), labels))
    return found[0], found[1]


def given_threads() -> int | None:
    """How many threads OMP_NUM_THREADS grants: of a list (4,2: for nested regions) the first; None: it says nothing."""
    given = re.match(r"\s*0*([1-9]\d*)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(given[1]) if given else None
