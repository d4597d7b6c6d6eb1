"""Metrics equal scikit-learn's, do not care which side is called a, and have intervals that cover the truth."""

import itertools
from math import factorial, prod

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from core.records import LABELS
from core.scoring import SWAPPED
from eval.metrics import (
    BLOCK,
    BOOTSTRAP,
    FIGURES,
    JACKKNIFE,
    Means,
    accuracy_rows,
    auc_rows,
    bootstrap_means,
    brier_rows,
    difference,
    expected_calibration_error,
    figure_rows,
    flip_rate,
    human_rows,
    interval,
    kl_rows,
    log_loss_rows,
    paired_difference,
    predict,
    reliability,
    reliability_by_label,
    repeated,
    shares,
    summarise,
)


def simulate(rows: int, seed: int, soft: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits in both orders and votes; a quarter of the logits is rounded, so that labels tie."""
    rng = np.random.default_rng(seed)
    ab, ba = rng.normal(0, 2, (2, rows, 3)).astype(np.float32)
    ab[::4], ba[::4] = ab[::4].round(), ba[::4].round()
    votes = rng.multinomial(5, [0.4, 0.3, 0.3], rows) if soft else np.eye(3)[rng.integers(3, size=rows)]
    return ab, ba, votes.astype(np.float64)


def test_equals_scikit_learn_on_single_votes() -> None:
    ab, ba, votes = simulate(500, 0)
    ab[::4] += np.array([0.1, 0.02, 0], dtype=np.float32)  # scikit-learn knows no ties
    probabilities, labels = predict(ab, ba), votes.argmax(1)
    assert log_loss_rows(probabilities, votes).mean() == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities), abs=1e-9
    )
    assert accuracy_rows(probabilities, votes).mean() == sklearn.metrics.accuracy_score(labels, probabilities.argmax(1))
    assert brier_rows(probabilities, votes).mean() == pytest.approx(
        sklearn.metrics.brier_score_loss(labels, probabilities, scale_by_half=False), abs=1e-9
    )
    table = reliability_by_label(probabilities, votes, 10)
    for label, predicted, voted in zip(LABELS, probabilities.T, votes.T, strict=True):
        observed, mean = calibration_curve(voted, predicted, n_bins=10, strategy="quantile")
        assert table.filter(label=label)["predicted"].to_numpy() == pytest.approx(mean, abs=0.02)
        assert table.filter(label=label)["observed"].to_numpy() == pytest.approx(observed, abs=0.06)


def test_several_votes_count_as_single_voters_of_one_conversation_weight() -> None:
    ab, ba, votes = simulate(300, 1, soft=True)
    probabilities = predict(ab, ba)
    row, label = np.nonzero(votes)
    expected = sklearn.metrics.log_loss(label, probabilities[row], sample_weight=votes[row, label] / 5)
    assert log_loss_rows(probabilities, votes).mean() == pytest.approx(expected, abs=1e-9)
    brier = sklearn.metrics.brier_score_loss(
        label, probabilities[row], sample_weight=votes[row, label] / 5, scale_by_half=False
    )
    assert brier_rows(probabilities, votes).mean() == pytest.approx(brier, abs=1e-9)
    for rows in (log_loss_rows, brier_rows, accuracy_rows, auc_rows):
        assert rows(probabilities, votes) == pytest.approx(rows(probabilities, votes * 7))


@pytest.mark.parametrize("soft", [False, True])
def test_auc_equals_scikit_learn_on_both_sides_of_every_decisive_vote(soft: bool) -> None:
    ab, ba, votes = simulate(300, 2, soft)
    probabilities = predict(ab, ba)
    margin = probabilities[:, 0] - probabilities[:, 1]
    row, label = np.nonzero(votes[:, :2])
    expected = sklearn.metrics.roc_auc_score(
        np.concatenate([label == 0, label == 1]),
        np.concatenate([margin[row], -margin[row]]),
        sample_weight=np.tile(shares(votes)[row, label], 2),
    )
    assert auc_rows(probabilities, votes).mean() == pytest.approx(expected, abs=1e-9)  # type: ignore[union-attr]


def test_auc_rows_vary_as_the_area_does_when_rows_are_drawn_anew() -> None:
    ab, ba, votes = simulate(400, 3)
    ab[np.arange(400), votes.argmax(1)] += 2
    probabilities, rng = predict(ab, ba), np.random.default_rng(0)
    areas = []
    for _ in range(1000):
        drawn = rng.integers(400, size=400)
        areas.append(auc_rows(probabilities[drawn], votes[drawn]).mean())  # type: ignore[union-attr]
    means = bootstrap_means(auc_rows(probabilities, votes), np.arange(400), 1000, 0)  # type: ignore[arg-type]
    assert means.mean() == pytest.approx(np.mean(areas), abs=0.005)
    assert means.std() == pytest.approx(np.std(areas), rel=0.1)


def test_ties_alone_have_no_auc() -> None:
    ab, ba, _ = simulate(5, 0)
    ties = np.tile([0.0, 0, 1], (5, 1))
    assert auc_rows(predict(ab, ba), ties) is None
    summary = summarise(ab, ba, ties, list("abcde"), draws=5, bins=3, seed=0)
    assert summary["auc"] is None and summary["auc_ci"] is None and summary["brier_ci"] is not None


def test_hand_worked_example() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.4, 0.4, 0.2], [0.0, 1.0, 0.0]])
    votes = np.array([[1, 0, 0], [0, 3, 1], [0, 1, 0], [1, 0, 0]])
    losses = [-np.log(0.7), -np.log(0.25), -np.log(0.4), -np.log(np.finfo(float).eps)]
    assert log_loss_rows(probabilities, votes) == pytest.approx(losses)
    assert accuracy_rows(probabilities, votes).tolist() == [1, 0, 0.5, 0]
    # five bins: .4 alone in (.2, .4]; .5 in (.4, .6]; .7 in (.6, .8]; 1 in (.8, 1]
    assert reliability(probabilities, votes, 5).rows() == [(1, 0.4, 0.5), (1, 0.5, 0), (1, 0.7, 1), (1, 1, 0)]
    assert expected_calibration_error(probabilities, votes, 5) == pytest.approx((0.1 + 0.5 + 0.3 + 1) / 4)
    # two bins: .4 and .5 in (0, .5], mean .45 against .25; .7 and 1 in (.5, 1], mean .85 against .5
    assert expected_calibration_error(probabilities, votes, 2) == pytest.approx((0.2 + 0.35) / 2)
    brier = [0.14, (0.25 + 2 * 0.0625) - 2 * 0.25 + 1, 0.16 + 0.36 + 0.04, 2]
    assert brier_rows(probabilities, votes) == pytest.approx(brier, abs=1e-9)
    # decisive margins of the side voted for: .5 and, for .75 of a voter, -.25, then 0 and -1; each against all mirrored
    # ones, -.5 (1), .25 (.75), 0 (1), 1 (1): above 1, .75 * 1, 1.5 and 0 losers, the tie with oneself counting half
    area = (2.75 + 0.75 * 1 + (1 + 0.5) + 0) / 3.75**2
    assert auc_rows(probabilities, votes).mean() == pytest.approx(area, abs=1e-9)  # type: ignore[union-attr]
    teacher = np.array([[0.5, 0.5, 0], [0.5, 0.25, 0.25], [0.4, 0.4, 0.2], [0, 1, 0]])
    kl = 0.5 * np.log(0.5 / 0.7) + 0.5 * np.log(0.5 / 0.2)
    assert kl_rows(teacher, probabilities) == pytest.approx([kl, 0, 0, 0], abs=1e-9)


def test_people_agree_as_worked_by_hand() -> None:
    votes = np.array([[3, 0, 0], [2, 1, 0], [1, 1, 1], [1, 1, 0]])
    people = human_rows(votes)
    assert people["agreement"] == pytest.approx([1, 1 / 3, 0, 0], abs=1e-9)
    # of 2 : 1, either of the two sees one with, one against, thus half a verdict; the third sees two against
    assert people["majority"] == pytest.approx([1, 1 / 3, 0, 0], abs=1e-9)
    entropy = [0, np.log(3) - 2 / 3 * np.log(2) + 1 / 6, np.log(3) + 1 / 3, np.log(2) + 1 / 4]
    assert people["entropy"] == pytest.approx(entropy, abs=1e-9)
    assert people["largest_share"] == pytest.approx([1, 2 / 3, 1 / 3, 1 / 2])
    assert human_rows(np.array([[3, 1, 0]]))["majority"] == pytest.approx([0.75])
    assert repeated(np.array([[1, 0, 0], [0, 2, 0], [1.5, 0.5, 0], [1, 0, 1]])).tolist() == [False, True, False, True]


def test_human_agreement_is_unbiased_and_the_bounds_hold_in_expectation() -> None:
    law = [np.array([i, j, 10 - i - j]) / 10 for i in range(11) for j in range(11 - i)]
    for count in (2, 3, 5, 9):
        votes = np.array([v for v in itertools.product(range(count + 1), repeat=3) if sum(v) == count])
        people = human_rows(votes)
        ways = np.array([factorial(count) / prod(map(factorial, v)) for v in votes.tolist()])
        for p in law:
            chance = ways * (p**votes).prod(axis=1)
            assert chance @ people["agreement"] == pytest.approx((p**2).sum())
            assert chance @ people["majority"] <= p.max() + 1e-9, "the true law passes it"
            assert chance @ people["largest_share"] >= p.max() - 1e-9
            assert chance @ people["entropy"] <= -(p[p > 0] * np.log(p[p > 0])).sum() + 1e-9


@pytest.mark.parametrize("voters", [3, 9])
def test_what_people_say_bounds_a_judge_that_knows_the_law(voters: int) -> None:
    """Agreement with another or with most others is no ceiling; the largest share and the entropy bound all judges."""
    rng = np.random.default_rng(0)
    law = rng.dirichlet([1.5, 1.5, 1.5], 600)
    votes, groups = rng.multinomial(voters, law).astype(float), np.arange(600)
    accuracy, entropy = law.max(axis=1).mean(), -(law * np.log(law)).sum(axis=1).mean()
    people = human_rows(votes)
    found = Means(people, groups, 300, 0).figures({name: name for name in people})
    assert found["agreement_ci"][1] < accuracy
    assert found["majority_ci"][1] < accuracy or voters > 3
    assert found["largest_share_ci"][1] > found["largest_share"] > accuracy
    assert accuracy_rows(law, votes).mean() < found["largest_share"]
    assert found["entropy_ci"][0] < found["entropy"] < entropy
    assert found["entropy"] < log_loss_rows(law, votes).mean()
    assert found["entropy"] > (0.7 if voters == 3 else 0.93) * entropy, "and is near it with many votes"


def test_bins_of_equal_mass_hold_one_number_of_rows_and_never_part_equal_values() -> None:
    ab, ba, votes = simulate(1000, 4)
    ab[::4] += np.random.default_rng(0).normal(size=(250, 3)).astype(np.float32)
    probabilities = predict(ab, ba)
    assert reliability(probabilities, votes, 10, equal_mass=True)["count"].to_list() == pytest.approx([100] * 10, abs=1)
    ece, adaptive = (expected_calibration_error(probabilities, votes, 1, mass) for mass in (False, True))
    assert ece == pytest.approx(adaptive), "a single bin has any width and mass"
    constant = np.tile([0.5, 0.3, 0.2], (1000, 1))
    assert reliability(constant, votes, 10, equal_mass=True)["count"].to_list() == [1000]
    assert expected_calibration_error(constant, votes, 10, True) == pytest.approx(abs(votes[:, 0].mean() - 0.5))


@pytest.mark.parametrize("mass", [False, True])
def test_a_judge_that_knows_the_law_is_calibrated_and_a_bold_one_is_not(mass: bool) -> None:
    rng = np.random.default_rng(0)
    law = rng.dirichlet([1, 1, 1], 40_000)
    votes = (np.arange(3) == (rng.random((40_000, 1)) > law.cumsum(1)).sum(1, keepdims=True)).astype(float)
    bold = law**3 / (law**3).sum(1, keepdims=True)
    assert expected_calibration_error(law, votes, 10, mass) < 0.01
    assert expected_calibration_error(bold, votes, 10, mass) > 0.1
    table = reliability_by_label(law, votes, 10)
    assert table["predicted"].to_numpy() == pytest.approx(table["observed"].to_numpy(), abs=0.03)


def test_flip_rate_counts_verdicts_that_no_tie_explains() -> None:
    ab = np.array([[2, 1, 0], [2, 1, 0], [1, 1, 0], [0, 0, 0]])
    ba = np.array([[3, 0, 1], [0, 3, 1], [0, 1, 0], [0, 0, 1]])
    assert flip_rate(ab, ba) == 0.25


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), soft=st.booleans(), share=st.sampled_from([0.5, 1.0]))
def test_exchanging_the_sides_changes_nothing(seed: int, soft: bool, share: float) -> None:
    ab, ba, votes = simulate(60, seed, soft)
    groups = [str(i % 20) for i in range(60)]
    rows = np.random.default_rng(seed).random((60, 1)) < share
    exchanged = [
        np.where(rows, now[:, SWAPPED], before) for now, before in ((ba, ab), (ab, ba), (votes, votes))
    ]  # shown first is now b
    before = summarise(ab, ba, votes, groups, draws=50, bins=10, seed=seed)
    after = summarise(exchanged[0], exchanged[1], exchanged[2], groups, draws=50, bins=10, seed=seed)
    assert set(before) >= {*FIGURES, *(f"{name}_ci" for name in FIGURES), "ece", "adaptive_ece"}
    assert {k: pytest.approx(v, abs=1e-6) for k, v in before.items()} == after


def test_logits_that_are_not_finite_are_named() -> None:
    ab, ba, _ = simulate(5, 0)
    ba[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 .*row 3.*bf16"):
        predict(ab, ba)


def test_bootstrap_of_single_rows_equals_the_naive_one() -> None:
    rows = np.random.default_rng(0).normal(size=40)
    means = bootstrap_means(rows, [f"{i:02}" for i in range(40)], 4000, 0)
    naive = [np.random.default_rng(s).choice(rows, 40).mean() for s in range(4000)]
    assert means.shape == (4000, 1)
    assert interval(means) == pytest.approx(interval(np.array(naive)), abs=0.02)


def test_bootstrap_is_the_same_for_any_order_of_rows_and_any_number_of_columns() -> None:
    rng = np.random.default_rng(0)
    rows, groups = rng.normal(size=(90, 2)), np.array([str(i) for i in rng.integers(30, size=90)])
    order = rng.permutation(90)
    means = bootstrap_means(rows, groups, 20, 3)
    assert means == pytest.approx(bootstrap_means(rows[order], groups[order], 20, 3), abs=1e-6)
    assert (means[:, 1:] == bootstrap_means(rows[:, 1], groups, 20, 3)).all()
    assert means == pytest.approx(bootstrap_means(np.repeat(rows, 3, 0), np.repeat(groups, 3), 20, 3), abs=1e-6)


def test_bootstrap_across_blocks_draws_every_group_alike() -> None:
    groups = BLOCK + 1000
    rows = np.zeros((groups, 2))
    rows[:1000, 0], rows[-1000:, 1] = 1, 1  # one in the first block, one alone in the second
    means = bootstrap_means(rows, np.char.zfill(np.arange(groups).astype(str), 6), 300, 0) * groups
    assert means.mean(0) == pytest.approx([1000, 1000], abs=4 * np.sqrt(1000 / 300))
    assert means.std(0) == pytest.approx([np.sqrt(1000)] * 2, rel=0.2)


def test_intervals_cover_the_truth() -> None:
    covered = grouped = alone = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        covered += _covers(rng.exponential(1, 200), np.arange(200), 1.0, seed)
        prompts = np.repeat(np.arange(50), 4)
        rows = rng.exponential(1, 50)[prompts] + rng.normal(0, 0.3, 200)  # rows of a prompt move together
        grouped += _covers(rows, prompts, 1.0, seed)
        alone += _covers(rows, np.arange(200), 1.0, seed)
    assert 180 <= covered <= 198
    assert 176 <= grouped <= 198
    assert alone < 160, "treating rows of one prompt as independent must show"


def _covers(rows: np.ndarray, groups: np.ndarray, truth: float, seed: int) -> bool:
    low, high = interval(bootstrap_means(rows, groups.astype(str), 300, seed))
    return low <= truth <= high


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
        means = Means(rows, groups, 200, seed)
        intervals = {name: ci for name, ci in means.figures({name: name for name in FIGURES if name in rows}).items()}
        intervals["gain_ci"] = difference(means.mean("gain"))["ci"]
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
    many, few = Means(rows, np.arange(60), 400, 0), Means(rows, np.arange(60) // 2, 400, 0)
    assert (many.method, few.method) == (BOOTSTRAP, JACKKNIFE)
    assert many.figures({"loss": "loss"})["loss_ci"] == pytest.approx(
        interval(bootstrap_means(rows["loss"], np.arange(60), 400, 0))
    )
    uneven = np.maximum(np.arange(400), 300)  # 300 prompts, of which one holds a quarter of the rows
    assert Means({"loss": np.ones(400)}, uneven, 10, 0).method == JACKKNIFE


def test_two_prompts_have_a_finite_interval_and_none_of_few_is_not_surely_none() -> None:
    ab = np.tile([1.0, 0, 0], (4, 1))
    found = summarise(ab, ab, np.eye(3)[[0, 1, 0, 2]], ["p", "q", "q", "q"], draws=5, bins=3, seed=0)
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
    found = paired_difference(worse, better, groups, 300, 0)
    low, high = found["ci"]
    assert 0 < low < found["difference"] < high < 0.1
    assert found["difference"] == pytest.approx((worse - better).mean())
    apart = bootstrap_means(np.column_stack([worse, better]), groups, 300, 0)
    assert interval(apart[:, 0] - apart[:, 1]) == pytest.approx([low, high]), "one set of draws for both"
    assert high - low < 0.2 * np.ptp(interval(apart[:, 0]))
    assert found["beats"] and found["p"] == pytest.approx(2 / 301), "no draw at or below zero"
    reverse = paired_difference(better, worse, groups, 300, 0)
    assert not reverse["beats"] and reverse["p"] == found["p"], "significant, and worse"
    same = paired_difference(worse, worse, groups, 300, 0)
    assert (same["difference"], same["ci"], same["p"], same["beats"]) == (0, [0, 0], 1, False)


def test_p_values_of_equal_judges_are_uniform() -> None:
    p = []
    for seed in range(300):
        one, other = np.random.default_rng(seed).exponential(1, (2, 80))
        p.append(paired_difference(one, other, [str(i) for i in range(80)], 200, seed)["p"])
    assert [np.mean(np.array(p) <= level) for level in (0.1, 0.5, 0.9)] == pytest.approx([0.1, 0.5, 0.9], abs=0.08)


def test_one_group_has_no_interval() -> None:
    with pytest.raises(ValueError, match="all 7 conversations share one group"):
        bootstrap_means(np.zeros(7), [""] * 7, 10, 0)
