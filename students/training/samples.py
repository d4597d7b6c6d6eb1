"""Sample predictions: a few validation conversations with their texts and the judge's verdicts."""

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from core.labels import Labels, among
from core.records import LABELS, Conversation

TEXTS = ("prompt", "response_a", "response_b")
CHARACTERS = 500  # of a prompt or response that is shown


def samples_schema(labels: Labels = LABELS) -> pl.Schema:
    """The columns of a table of samples, with votes and probabilities of `labels`."""
    return pl.Schema(
        {
            "step": pl.Int64(),
            "chosen": pl.String(),
            "id": pl.String(),
            **dict.fromkeys(TEXTS, pl.String()),
            **{f"votes_{label}": pl.Float64() for label in labels},
            **{f"p_{label}": pl.Float64() for label in labels},
            "log_loss": pl.Float64(),
        }
    )


def sample_table(
    conversations: Sequence[Conversation],
    logits: torch.Tensor,
    step: int,
    count: int,
    seed: int,
    labels: Labels = LABELS,
) -> pl.DataFrame:
    """A table in `samples_schema` of `count` voted conversations, largest log loss (nats) first.

    Half of them are drawn by `seed` alone, so each validation shows the same ones; the others are the worst of the
    rest. `logits` [conversations, 3] are the judge's, in the conversation's own a/b order.
    """
    votes = among(torch.tensor([c.votes for c in conversations], dtype=torch.float64), labels)
    log_probabilities = among(logits.double(), labels).log_softmax(-1)
    losses = -(votes / votes.sum(-1, keepdim=True) * log_probabilities).sum(-1)
    order = np.random.default_rng(seed).permutation(len(conversations)).tolist()
    drawn, rest = order[: count // 2], order[count // 2 :]
    worst = sorted(rest, key=lambda i: -losses[i].item())[: count - len(drawn)]
    chosen = dict.fromkeys(drawn, "random") | dict.fromkeys(worst, "worst")
    rows = [
        (
            step,
            how,
            conversations[i].id,
            *(shortened("\n\n".join(getattr(conversations[i], text)), CHARACTERS) for text in TEXTS),
            *votes[i].tolist(),
            *log_probabilities[i].exp().tolist(),
            losses[i].item(),
        )
        for i, how in chosen.items()
    ]
    return pl.DataFrame(rows, schema=samples_schema(labels), orient="row").sort("log_loss", descending=True)


def shortened(text: str, characters: int) -> str:
    """`text` in at most `characters`, cut in its middle: an answer's end tells as much as its beginning."""
    if len(text) <= characters:
        return text
    end = (characters - 1) // 2
    return f"{text[: characters - 1 - end]}…{text[len(text) - end :]}"


def markdown(table: pl.DataFrame) -> str:
    """`table` in Markdown, every text of it literal: no markup of a prompt is markup of the page that shows it."""
    lines = [table.columns, ["---"] * table.width, *(map(_cell, row) for row in table.iter_rows())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    plain = " ".join(str(value).split())  # a line break would end the table
    return "".join(c if c.isalnum() or c == " " or not c.isascii() else f"&#{ord(c)};" for c in plain)
