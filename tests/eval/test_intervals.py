"""Intervals over groups of rows: what they equal, and that they hold where few groups tell."""

import numpy as np
import pytest
from scipy import stats

from eval.bootstrap import bootstrap_means, interval
from eval.intervals import LEVEL, MIN_GROUPS, Estimate, Jackknife


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


@pytest.mark.long
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
