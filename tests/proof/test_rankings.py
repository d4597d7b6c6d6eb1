"""Kendall's tau within prompts, worked by hand."""

import polars as pl
import pytest

from core.records import Conversation
from proof.rankings import agreement, places


def pair(name: str, prompt: str, a: str, b: str) -> Conversation:
    return Conversation(name, [prompt], [a], [b])


ROWS = [pair("1", "p", "x", "y"), pair("2", "p", "z", "x"), pair("3", "p", "y", "z"), pair("4", "q", "u", "v")]


def said(gaps: list[float]) -> pl.DataFrame:
    return pl.DataFrame({"id": ["1", "2", "3", "4"], "logits": [[gap / 2, -gap / 2, -30.0] for gap in gaps]})


def test_a_place_is_the_mean_lead_over_the_others() -> None:
    found = places(said([1.0, -2.0, 3.0, 5.0]), ROWS)
    assert found["p"] == pytest.approx({"x": 1.5, "y": 1.0, "z": -2.5}) and found["q"] == {"u": 5.0, "v": -5.0}


def test_tau_counts_pairs_in_the_same_order() -> None:
    rows = [*ROWS, pair("5", "r", "k", "l"), pair("6", "r", "l", "m"), pair("7", "r", "k", "m")]

    def both(first: list[float], second: list[float]) -> dict[str, dict[str, float]]:
        logits = [[gap, 0.0, -30.0] for gap in (*first, 1.0, *second)]
        return places(pl.DataFrame({"id": [c.id for c in rows], "logits": logits}), rows)

    teacher = both([1.0, -2.0, 3.0], [1.0, 1.0, 2.0])  # x > y > z, k > l > m
    assert agreement(teacher, teacher).value == pytest.approx(1)
    # One pair of three exchanged in the first prompt, all in the second; the prompt of two responses does not count.
    other = agreement(both([-1.0, -2.0, 3.0], [-1.0, -1.0, -2.0]), teacher)
    assert other.value == pytest.approx((1 / 3 - 1) / 2) and other.count == 2
    assert agreement(both([0.0, 0.0, 0.0], [1.0, 1.0, 2.0]), teacher).value == pytest.approx(0.5)
