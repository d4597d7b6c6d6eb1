"""Means have intervals that cover the truth, however few the prompts, and differences are paired."""

import numpy as np
import pytest

from eval.bootstrap import Resampling, bootstrap_means, interval
from eval.intervals import LEVEL
from eval.means import BOOTSTRAP, JACKKNIFE, Means, paired_difference
from eval.metrics import FIGURES, accuracy_rows, figure_rows, human_rows, log_loss_rows
from tests.eval.alone import figures_alone


@pytest.mark.parametrize("voters", [3, 9])
def test_what_people_say_bounds_a_judge_that_knows_the_law(voters: int) -> None:
    """Agreement with another or with most others is no ceiling; the largest share and the entropy bound all judges."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet([1.5, 1.5, 1.5], 600)
    votes, groups = rng.multinomial(voters, law).astype(float), np.arange(600)
    accuracy, entropy = law.max(axis=1).mean(), -(law * np.log(law)).sum(axis=1).mean()
    people = human_rows(votes)
    found = Means(people, groups, Resampling(300, 0)).figures({name: name for name in people})
    assert found["agreement_ci"][1] < accuracy
    assert found["majority_ci"][1] < accuracy or voters > 3
    assert found["largest_share_ci"][1] > found["largest_share"] > accuracy
    assert accuracy_rows(law, votes).mean() < found["largest_share"]
    assert found["entropy_ci"][0] < found["entropy"] < entropy
    assert found["entropy"] < log_loss_rows(law, votes).mean()
    assert found["entropy"] > (0.7 if voters == 3 else 0.93) * entropy, "and is near it with many votes"


COVERED = {  # least share of intervals that hold the truth; a skewed figure of 15 prompts reaches 0.91 with any t
    "log_loss": 0.89, "brier": 0.9, "accuracy": 0.925, "auc": 0.915, "flip_rate": 0.925, "gain": 0.925
}  # fmt: skip


@pytest.mark.parametrize("prompts", [15, 30])
def test_intervals_of_few_prompts_cover_the_truth(prompts: int) -> None:
    sets = 500
    truth, missed = _measured(np.random.default_rng(0), 100_000), dict.fromkeys(COVERED, 0)
    expected = {name: row.mean() for name, row in truth[1].items()}
    for seed in range(sets):
        groups, rows = _measured(np.random.default_rng([seed, prompts]), prompts)
        means = Means(rows, groups, Resampling(200, seed))
        intervals = {name: ci for name, ci in means.figures({name: name for name in FIGURES if name in rows}).items()}
        intervals["gain_ci"] = means.mean("gain").interval(LEVEL)
        for name in missed:
            low, high = intervals[f"{name}_ci"]
            missed[name] += not low <= expected[name] <= high
    covered = {name: 1 - count / sets for name, count in missed.items()}
    assert all(covered[name] >= least for name, least in COVERED.items()), covered


def _measured(rng: np.random.Generator, prompts: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Groups of one or two rows, and what two judges of a known law get on them; `gain` is that of the second."""
    groups = np.repeat(np.arange(prompts), rng.integers(1, 3, prompts))
    utility = rng.normal(0, 1.2, (len(groups), 3))
    law = np.exp(utility) / np.exp(utility).sum(axis=1, keepdims=True)
    votes = np.eye(3)[(rng.random((len(groups), 1)) > law.cumsum(axis=1)).sum(axis=1)]
    first, second = (figure_rows(*(utility + noise * rng.normal(size=(2, *law.shape))), votes) for noise in (1.0, 0.5))
    return groups, {**first, "gain": first["log_loss"] - second["log_loss"]}


def test_from_sixty_prompts_on_intervals_are_percentiles_and_prompts_count_as_much_as_they_weigh() -> None:
    rows = {"loss": np.random.default_rng(0).exponential(size=60)}
    many, few = Means(rows, np.arange(60), Resampling(400, 0)), Means(rows, np.arange(60) // 2, Resampling(400, 0))
    assert (many.method, few.method) == (BOOTSTRAP, JACKKNIFE)
    assert many.figures({"loss": "loss"})["loss_ci"] == pytest.approx(
        interval(bootstrap_means(rows["loss"], np.arange(60), 400, 0))
    )
    uneven = np.maximum(np.arange(400), 300)  # 300 prompts, of which one holds a quarter of the rows
    assert Means({"loss": np.ones(400)}, uneven, Resampling(10, 0)).method == JACKKNIFE


def test_two_prompts_have_a_finite_interval_and_none_of_few_is_not_surely_none() -> None:
    ab = np.tile([1.0, 0, 0], (4, 1))
    found = figures_alone(ab, ab, np.eye(3)[[0, 1, 0, 2]], ["p", "q", "q", "q"], Resampling(5, 0), bins=3)
    for name in FIGURES:
        if found[name] is not None:
            low, high = found[f"{name}_ci"]
            assert 0 <= low <= found[name] <= high < 100
    assert found["flip_rate"] == 0 and found["flip_rate_ci"][1] > 0.5
    assert found["accuracy_ci"][1] <= 1


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    rng = np.random.default_rng(0)
    worse = rng.exponential(1, 300)
    better = worse - 0.05 + rng.normal(0, 0.05, 300)
    groups = [str(i) for i in range(300)]
    found = paired_difference(worse, better, groups, Resampling(300, 0))
    low, high = found.ci
    assert 0 < low < found.difference < high < 0.1
    assert found.difference == pytest.approx((worse - better).mean())
    apart = bootstrap_means(np.column_stack([worse, better]), groups, 300, 0)
    assert interval(apart[:, 0] - apart[:, 1]) == pytest.approx([low, high]), "one set of draws for both"
    assert high - low < 0.2 * np.ptp(interval(apart[:, 0]))
    assert found.beats and found.p == pytest.approx(2 / 301), "no draw at or below zero"
    reverse = paired_difference(better, worse, groups, Resampling(300, 0))
    assert not reverse.beats and reverse.p == found.p, "significant, and worse"
    same = paired_difference(worse, worse, groups, Resampling(300, 0))
    assert (same.difference, same.ci, same.p, same.beats) == (0, (0, 0), 1, False)


@pytest.mark.long
def test_p_values_of_equal_judges_are_uniform() -> None:
    p = []
    for seed in range(300):
        one, other = np.random.default_rng(seed).exponential(1, (2, 80))
        p.append(paired_difference(one, other, [str(i) for i in range(80)], Resampling(200, seed)).p)
    assert [np.mean(np.array(p) <= level) for level in (0.1, 0.5, 0.9)] == pytest.approx([0.1, 0.5, 0.9], abs=0.08)
