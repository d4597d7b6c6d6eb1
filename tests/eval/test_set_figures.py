"""The figures of prediction sets, counted by hand and by slice."""

import numpy as np
import pytest

from core.records import Conversation
from eval.conformal import LEVELS, Thresholds
from eval.recalibration import IDENTITY, Recalibration
from eval.set_figures import judge_sets

ROWS = 80
THRESHOLDS = Thresholds(both=[0.3] * len(LEVELS), one=[0.9] * len(LEVELS), groups=33)


def conversations() -> list[Conversation]:
    """Every fourth of them has two turns."""
    turns = [2 if i % 4 == 1 else 1 for i in range(ROWS)]
    return [
        Conversation(str(i), ["What is it?"] * count, ["x"] * count, ["y"] * count, group=str(i))
        for i, count in enumerate(turns)
    ]


def test_coverage_and_size_are_counted_on_all_rows_and_on_each_slice() -> None:
    logits = np.log(np.tile([[0.6, 0.31, 0.09], [0.8, 0.1, 0.1]], (ROWS // 2, 1)))  # sets of a and b, and of a
    votes = np.tile([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]], (ROWS // 2, 1))  # held by the first, not by the second
    found = judge_sets(THRESHOLDS, IDENTITY, (logits, logits), conversations(), votes, 0.9, None)
    assert (found.coverage, found.size, found.whole, found.count) == (0.5, 1.5, 0, ROWS)
    assert found.coverage_ci is not None and found.coverage_ci[0] < 0.5 < found.coverage_ci[1]
    assert (found.asked, found.fitted_on) == (0.9, 33)
    by_label = {of.label: of for of in found.slices}
    two = by_label["conversations of two turns"]
    assert (two.count, two.coverage, two.size, two.noun) == (20, 0, 1, "turns")
    assert by_label["conversations of one turn"].coverage == pytest.approx(40 / 60)


def test_sets_are_those_of_recalibrated_probabilities() -> None:
    logits = np.log(np.tile([[0.8, 0.1, 0.1]], (ROWS, 1)))
    votes = np.tile([[0.0, 1.0, 0.0]], (ROWS, 1))
    flat = Recalibration((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
    found = judge_sets(THRESHOLDS, flat, (logits, logits), conversations(), votes, 0.9, None)
    assert (found.coverage, found.size, found.whole) == (1, 3, 1)
