"""Metrics equal scikit-learn's, do not care which side is called a, and have intervals that cover the truth."""

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.scoring import SWAPPED
from eval.metrics import (
    BLOCK,
    accuracy_rows,
    bootstrap_means,
    expected_calibration_error,
    flip_rate,
    interval,
    log_loss_rows,
    paired_difference,
    predict,
    reliability,
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


def test_several_votes_count_as_single_voters_of_one_conversation_weight() -> None:
    ab, ba, votes = simulate(300, 1, soft=True)
    probabilities = predict(ab, ba)
    row, label = np.nonzero(votes)
    expected = sklearn.metrics.log_loss(label, probabilities[row], sample_weight=votes[row, label] / 5)
    assert log_loss_rows(probabilities, votes).mean() == pytest.approx(expected, abs=1e-9)
    assert log_loss_rows(probabilities, votes) == pytest.approx(log_loss_rows(probabilities, votes * 7))


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
    assert {k: pytest.approx(v) for k, v in before.items()} == after


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
    assert means == pytest.approx(bootstrap_means(rows[order], groups[order], 20, 3))
    assert (means[:, 1:] == bootstrap_means(rows[:, 1], groups, 20, 3)).all()
    assert means == pytest.approx(bootstrap_means(np.repeat(rows, 3, 0), np.repeat(groups, 3), 20, 3))


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


def test_one_group_has_no_interval() -> None:
    with pytest.raises(ValueError, match="all 7 conversations share one group"):
        bootstrap_means(np.zeros(7), [""] * 7, 10, 0)
