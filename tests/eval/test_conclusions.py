"""Of several estimates the most striking is told, and chance flags any of them no more often than it says."""

from itertools import pairwise

import numpy as np
from scipy import stats

from eval.conclusions import Bias, Claim, OneOfSeveral, conclude_most_striking, flags, quantile_bins
from eval.intervals import LEVEL, MIN_GROUPS, Estimate


def test_flags_answer_for_all_comparisons_together() -> None:
    def at(p: float) -> Estimate:
        return Estimate(float(stats.t.isf(p / 2, 99)), 1.0, 100, 100)

    assert flags({"a": at(0.02), "b": at(0.04), "c": at(0.01)}, LEVEL) == {"a": True, "b": True, "c": True}
    assert flags({"a": at(0.02), "b": at(0.04), "c": at(0.017)}, LEVEL) == {"a": False, "b": False, "c": False}
    assert flags({"a": at(0.03), "b": at(0.01), "c": at(0.04)}, LEVEL) == {"a": False, "b": True, "c": False}
    assert flags({}, LEVEL) == {}


def headline(told: dict[str, Estimate]) -> Bias:
    told_of = {"judge": None, "people": None, "value": None, "low": None, "high": None, "count": 0}
    rows = {x: OneOfSeveral(x=x, **told_of) for x in told}
    claim = Claim("{}", "zero", above="above", below="below")
    return conclude_most_striking("letters", "win rate", told, claim, rows, level=LEVEL, whole="a letter")


def test_the_headline_is_what_chance_explains_least_not_what_is_farthest_on_few_prompts() -> None:
    told = {"A": Estimate(2.9, 1, 10, 10), "B": Estimate(2.85, 1, 300, 300), "C": Estimate(0, 1, 300, 300)}
    found = headline(told)
    assert found.flagged and found.sentence.startswith("B is ") and found.value == 2.85
    assert [row.x for row in found.table if row.flagged] == ["A", "B"], "A is Holm's second step"


def test_the_headline_is_flagged_where_a_row_is() -> None:
    rng = np.random.default_rng(4)
    outcomes = set()
    for _ in range(500):
        groups = rng.uniform(MIN_GROUPS, 60, size=3)
        found = headline({x: Estimate(1.5 * rng.normal(), 1, g, 60) for x, g in zip("ABC", groups, strict=True)})
        outcomes.add((found.flagged, any(row.flagged for row in found.table)))
    assert outcomes == {(True, True), (False, False)}


def test_of_p_values_too_small_to_tell_apart_the_farthest_is_the_headline() -> None:
    told = {"A": Estimate(60, 1, 1e6, 300), "B": Estimate(50, 1, 1e6, 300)}
    assert told["A"].p == told["B"].p == 0 and headline(told).sentence.startswith("A is ")
    even = {"A": Estimate(3, 1, 30, 30), "B": Estimate(-3 - 1e-14, 1, 30, 30), "C": Estimate(3 + 1e-14, 1, 30, 30)}
    assert headline(even).sentence.startswith("C is "), "of equals the last"


def test_ranges_hold_every_row_once_and_about_as_many_each() -> None:
    values = np.random.default_rng(3).exponential(size=1000)
    bins = quantile_bins(values, 5)
    assert [int(rows.sum()) for rows in bins] == [200] * 5
    assert all(values[low].max() < values[high].min() for low, high in pairwise(bins))
    tied = quantile_bins(np.array([1, 1, 1, 1, 1, 1, 1, 9]), 4)
    assert np.sum(tied, axis=0).tolist() == [1] * 8 and len(tied) == 2
    assert quantile_bins(np.empty(0), 4) == []
