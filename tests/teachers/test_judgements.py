"""What a scoring run says of its teacher."""

import math

import numpy as np
import polars as pl
import pytest

from core.labels import WITHOUT_TIES
from core.records import ORDERS, TEST, Conversation
from teachers.judgements import log_loss_of_votes


def conversation(name: str, fold: int, votes: list[float] | None) -> Conversation:
    return Conversation(name, ["?"], ["x"], ["y"], votes=votes, fold=fold)


def test_the_log_loss_is_that_of_votes_outside_the_test_split_that_were_not_learned() -> None:
    rows = [
        conversation("one", 0, [1, 0, 0]),
        conversation("two", 1, [0, 1, 1]),
        conversation("learned", 1, [1, 0, 0]),
        conversation("unvoted", 1, None),
        conversation("test", TEST, [1, 0, 0]),
    ]
    logits = {"one": [3.0, 1.0, 0.0], "two": [0.0, 2.0, 1.0]}
    scores = pl.DataFrame(
        [
            {
                "id": c.id,
                "order": order,
                "logits": np.add(logits.get(c.id, [9.0, 0.0, 0.0]), (0.5, 0, 0) if order == "ab" else (-0.5, 0, 0)),
                "in_sample": c.id == "learned",
            }
            for c in rows
            for order in ORDERS
        ],
        schema_overrides={"logits": pl.Array(pl.Float32, 3)},
    )
    chances = {name: np.exp(of) / np.exp(of).sum() for name, of in logits.items()}
    expected = -(math.log(chances["one"][0]) + math.log(chances["two"][1]) + math.log(chances["two"][2])) / 3
    assert log_loss_of_votes(scores, rows) == (pytest.approx(expected), 2, pytest.approx(math.log(3)))
    assert log_loss_of_votes(scores, rows[2:]) is None


def test_without_ties_the_log_loss_is_that_of_a_and_b() -> None:
    rows = [conversation("one", 0, [1, 0, 0]), conversation("two", 1, [0, 1, 0])]
    scores = pl.DataFrame(
        [{"id": c.id, "order": order, "logits": [1.0, 0.0, 9.0], "in_sample": False} for c in rows for order in ORDERS],
        schema_overrides={"logits": pl.Array(pl.Float32, 3)},
    )
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2  # whatever it thinks of ties
    assert log_loss_of_votes(scores, rows, WITHOUT_TIES) == (pytest.approx(expected), 2, pytest.approx(math.log(2)))
