"""Metrics equal scikit-learn's, and do not care which side is called a."""

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
from eval.bootstrap import Resampling, bootstrap_means
from eval.metrics import (
    FIGURES,
    accuracy_rows,
    auc_rows,
    brier_rows,
    flip_rate,
    human_rows,
    kl_rows,
    log_loss_rows,
    predict,
    repeated,
    shares,
)
from eval.reliability import expected_calibration_error, reliability, reliability_by_label
from tests.eval.alone import figures_alone
from tests.eval.simulated_logits import simulate


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
    found = figures_alone(ab, ba, ties, list("abcde"), Resampling(5, 0), bins=3)
    assert found["auc"] is None and found["auc_ci"] is None and found["brier_ci"] is not None


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
    before = figures_alone(ab, ba, votes, groups, Resampling(50, seed), bins=10)
    after = figures_alone(exchanged[0], exchanged[1], exchanged[2], groups, Resampling(50, seed), bins=10)
    assert set(before) >= {*FIGURES, *(f"{name}_ci" for name in FIGURES), "ece", "adaptive_ece"}
    assert {k: pytest.approx(v, abs=1e-6) for k, v in before.items()} == after


def test_logits_that_are_not_finite_are_named() -> None:
    ab, ba, _ = simulate(5, 0)
    ba[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 .*row 3.*bf16"):
        predict(ab, ba)
