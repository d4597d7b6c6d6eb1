"""Intervals over groups of rows: what they equal, and that they hold where few groups tell."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from eval.inference import MIN_GROUPS, Bias, Claim, Estimate, Jackknife, conclude_most_striking, flags, quantile_bins
from eval.metrics import bootstrap_means, interval

LEVEL = 0.05


def test_with_one_row_a_group_the_jackknife_is_students_t_test() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    found = Jackknife([str(i) for i in range(40)]).mean(values, np.ones(40))
    assert found is not None
    expected = stats.ttest_1samp(values, 0)
    bounds = expected.confidence_interval(1 - LEVEL)
    assert found.interval(LEVEL) == pytest.approx((bounds.low, bounds.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_the_jackknife_leaves_out_one_group_after_the_other() -> None:
    rng = np.random.default_rng(1)
    values, weights, others = rng.normal(size=(3, 90))
    weights, others = abs(weights), (others > 0).astype(float)
    groups = rng.integers(30, size=90)

    def gap(keep: np.ndarray) -> float:
        return float(np.average(values[keep], weights=weights[keep]) - np.average(values[keep], weights=others[keep]))

    found = Jackknife(groups).difference((values, weights), (values, others))
    left_out = np.array([gap(groups != g) for g in np.unique(groups)])
    count, whole = len(left_out), gap(np.ones(90, dtype=bool))
    assert found is not None and found.value == pytest.approx(whole)
    assert found.error == pytest.approx(np.sqrt((count - 1) / count * ((left_out - whole) ** 2).sum()))


def test_its_intervals_hold_on_small_slices_where_percentiles_do_not() -> None:
    seeds, missed = 400, np.zeros(2)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        groups, inside = rng.integers(60, size=100), (rng.random(100) < 0.2).astype(float)
        values = rng.normal(size=100) + 0.4 * rng.normal(size=60)[groups]  # of mean zero
        found = Jackknife(groups).mean(values, inside)
        if found is not None:
            means = bootstrap_means(np.column_stack([values * inside, inside]), groups, 200, seed)
            for i, (low, high) in enumerate((found.interval(LEVEL), interval(means[:, 0] / means[:, 1]))):
                missed[i] += low > 0 or high < 0
    assert missed[0] <= stats.binom.ppf(0.99, seeds, LEVEL) < missed[1]


def test_rows_repeated_within_a_group_say_nothing_new() -> None:
    values = np.random.default_rng(2).normal(size=25)
    once = Jackknife(np.arange(25)).mean(values, np.ones(25))
    thrice = Jackknife(np.repeat(np.arange(25), 3)).mean(values.repeat(3), np.ones(75))
    assert once is not None and thrice is not None
    assert thrice.interval(LEVEL) == pytest.approx(once.interval(LEVEL))
    assert (once.count, thrice.count) == (25, 75)


def test_too_few_groups_tell_nothing() -> None:
    groups, ones = np.arange(MIN_GROUPS), np.ones(MIN_GROUPS)
    assert Jackknife(groups).mean(ones, ones) is not None
    assert Jackknife(groups).mean(ones, (groups > 0).astype(float)) is None
    assert Jackknife(np.zeros(500)).mean(np.ones(500), np.ones(500)) is None
    mostly_one = np.concatenate([np.zeros(1000), groups])  # ten prompts, of which one is nearly everything
    assert Jackknife(mostly_one).mean(mostly_one, np.ones(len(mostly_one))) is None


def test_shares_stay_between_none_and_all() -> None:
    never = Estimate(0.0, 0.0, 30, 30).share_interval(LEVEL)
    assert never[0] == 0 and never[1] == pytest.approx(0.12, abs=0.01)
    always = Estimate(1.0, 0.0, 30, 30).share_interval(LEVEL)
    assert always == pytest.approx((1 - never[1], 1.0))
    half = Estimate(0.5, 0.01, 2500, 2500)
    assert half.share_interval(LEVEL) == pytest.approx(half.interval(LEVEL), abs=1e-4)


def test_flags_answer_for_all_comparisons_together() -> None:
    def at(p: float) -> Estimate:
        return Estimate(float(stats.t.isf(p / 2, 99)), 1.0, 100, 100)

    assert flags({"a": at(0.02), "b": at(0.04), "c": at(0.01)}, LEVEL) == {"a": True, "b": True, "c": True}
    assert flags({"a": at(0.02), "b": at(0.04), "c": at(0.017)}, LEVEL) == {"a": False, "b": False, "c": False}
    assert flags({"a": at(0.03), "b": at(0.01), "c": at(0.04)}, LEVEL) == {"a": False, "b": True, "c": False}
    assert flags({}, LEVEL) == {}


def headline(told: dict[str, Estimate]) -> Bias:
    rows = {x: {"x": x} for x in told}
    claim = Claim("{}", "zero", above="above", below="below")
    return conclude_most_striking("letters", "win rate", told, claim, rows, level=LEVEL, whole="a letter")


def test_the_headline_is_what_chance_explains_least_not_what_is_farthest_on_few_prompts() -> None:
    told = {"A": Estimate(2.9, 1, 10, 10), "B": Estimate(2.85, 1, 300, 300), "C": Estimate(0, 1, 300, 300)}
    found = headline(told)
    assert found.flagged and found.sentence.startswith("B is ") and found.value == 2.85
    assert [row["x"] for row in found.table if row["flagged"]] == ["A", "B"], "A is Holm's second step"


def test_the_headline_is_flagged_where_a_row_is() -> None:
    rng = np.random.default_rng(4)
    outcomes = set()
    for _ in range(500):
        groups = rng.uniform(MIN_GROUPS, 60, size=3)
        found = headline({x: Estimate(1.5 * rng.normal(), 1, g, 60) for x, g in zip("ABC", groups, strict=True)})
        outcomes.add((found.flagged, any(row["flagged"] for row in found.table)))
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
