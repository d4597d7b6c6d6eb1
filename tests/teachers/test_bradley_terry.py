"""Votes weigh rewards: Davidson's model, its maximum, and no logits that know the votes of their own fold."""

import logging
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax

from core.records import TEST, Conversation, swap_labels
from core.store.parts import NO_FOLD
from core.store.rows import REWARDS
from teachers.bradley_terry import CROSS_FIT, BradleyTerry, cross_fit, cross_fitted, davidson_loss, fit_bradley_terry


def planted(n: int, weights: np.ndarray, log_tie: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Differences of unequal scales, and votes drawn from Davidson's model."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(size=(n, len(weights))) / (np.abs(weights) + 0.5)
    chances = softmax(BradleyTerry(weights, log_tie).logits(differences), axis=1)
    return differences, (chances.cumsum(axis=1) > rng.random((n, 1))).cumsum(axis=1).cumsum(axis=1) == 1


class TestBradleyTerry:
    def test_recovers_planted_parameters(self) -> None:
        weights = np.array([1.5, -0.2, 0.0, 20.0])
        fit = fit_bradley_terry(*planted(40_000, weights, -0.4), l2=0.0)
        np.testing.assert_allclose(
            fit.weights * (1 / (np.abs(weights) + 0.5)), weights / (np.abs(weights) + 0.5), atol=0.04
        )
        assert abs(fit.log_tie + 0.4) < 0.04

    @pytest.mark.parametrize("l2", [0.0, 3.0])
    def test_gradient_equals_finite_differences(self, l2: float) -> None:
        differences, votes = planted(50, np.array([1.0, -2.0]), 0.3)
        shares = softmax(votes + np.arange(3.0), axis=1)  # soft votes
        for at in np.random.default_rng(1).normal(size=(5, 3)):
            steps = 1e-5 * np.eye(3)
            up, down = ([davidson_loss(at + sign * e, differences, shares, l2)[0] for e in steps] for sign in (1, -1))
            _, gradient = davidson_loss(at, differences, shares, l2)
            np.testing.assert_allclose(gradient, (np.array(up) - down) / 2e-5, rtol=1e-5, atol=1e-5)

    def test_swapping_sides_swaps_logits_exactly(self) -> None:
        differences, votes = planted(300, np.array([1.0, -2.0, 0.3]), 0.3)
        fit = fit_bradley_terry(differences, votes, 1.0)
        swapped = np.stack(swap_labels(fit.logits(-differences).T), axis=1)
        assert np.array_equal(fit.logits(differences), swapped)
        side = np.random.default_rng(2).random(300) < 0.5  # exchange a and b in some rows: nothing else may change
        other = fit_bradley_terry(
            np.where(side[:, None], -differences, differences), np.where(side[:, None], votes[:, [1, 0, 2]], votes), 1.0
        )
        np.testing.assert_allclose(other.weights, fit.weights, atol=1e-5)
        assert abs(other.log_tie - fit.log_tie) < 1e-5

    def test_a_reward_in_other_units_gives_the_same_logits_and_a_constant_one_weight_zero(self) -> None:
        differences, votes = planted(500, np.array([1.0, -2.0]), 0.3)
        fit = fit_bradley_terry(differences, votes, 5.0)
        scaled = np.column_stack([differences * [1e4, 1e-4], np.zeros(500)])
        other = fit_bradley_terry(scaled, votes, 5.0)
        np.testing.assert_allclose(other.logits(scaled), fit.logits(differences), atol=1e-4)
        assert other.weights[2] == 0

    def test_a_penalty_shrinks_and_rows_count_as_shares(self) -> None:
        differences, votes = planted(100, np.array([2.0]), 0.0)
        free, held = (fit_bradley_terry(differences, votes, l2).weights[0] for l2 in (0.0, 50.0))
        assert 0 < held < 0.8 * free
        many = fit_bradley_terry(differences, votes * 7.0, 0.0).weights[0]
        assert abs(many - free) < 1e-6

    def test_labels_nobody_chose_stay_possible(self) -> None:
        never = fit_bradley_terry(np.zeros((100, 1)), np.tile([1.0, 1.0, 0.0], (100, 1)), 1.0)
        assert softmax(never.logits(np.zeros((1, 1))))[0, 2] == pytest.approx(1 / 103, rel=1e-3)
        separable = fit_bradley_terry(np.ones((20, 1)), np.tile([1.0, 0.0, 0.0], (20, 1)), 1.0)
        assert np.isfinite(separable.logits(np.ones((1, 1)))).all() and separable.weights[0] > 1

    def test_what_cannot_be_fitted_is_refused(self) -> None:
        with pytest.raises(ValueError, match="of 2 conversations 1 have no votes"):
            fit_bradley_terry(np.ones((2, 1)), np.array([[1.0, 0, 0], [0, 0, 0]]), 1.0)
        with pytest.raises(ValueError, match="of 0 conversations"):
            fit_bradley_terry(np.ones((0, 1)), np.ones((0, 3)), 1.0)


def arena(n: int, folds: int = 3, voted: float = 0.8) -> tuple[pl.DataFrame, list[Conversation]]:
    """Rewards of two objectives and the conversations whose votes follow the first; some have no votes."""
    rng = np.random.default_rng(4)
    rewards = rng.normal(size=(n, 2, 2)).astype(np.float32)
    strength = BradleyTerry(np.array([2.0, 0.0]), -0.5).logits((rewards[:, 0] - rewards[:, 1]).astype(np.float64))
    labels = [rng.choice(3, p=p) for p in softmax(strength, axis=1)]
    votes = [list(np.eye(3)[label]) if rng.random() < voted else None for label in labels]
    shown = [Conversation(f"c{i}", ["q"], ["a"], ["b"], votes=v, fold=i % folds) for i, v in enumerate(votes)]
    rows = [
        (c.id, r, pair[k].tolist(), 5, False, -1, 7)
        for c, pair in zip(shown, rewards, strict=True)
        for k, r in enumerate("ab")
    ]
    return pl.DataFrame(rows, schema=REWARDS, orient="row").sample(fraction=1, shuffle=True, seed=0), shown


class TestCrossFit:
    def test_a_folds_logits_are_those_of_the_model_fitted_on_the_others(self) -> None:
        rewards, shown = arena(90)
        logits = cross_fit(rewards, shown, 1.0)
        assert logits.schema == CROSS_FIT and logits["id"].to_list() == [c.id for c in shown]
        assert logits["judge_fold"].to_list() == [c.fold for c in shown]
        vectors = {(row[0], row[1]): np.array(row[2]) for row in rewards.iter_rows()}
        differences = np.array([vectors[c.id, "a"] - vectors[c.id, "b"] for c in shown])
        others = [i for i, c in enumerate(shown) if c.fold != 1 and c.votes]
        fit = fit_bradley_terry(differences[others], np.array([shown[i].votes for i in others]), 1.0)
        here = [i for i, c in enumerate(shown) if c.fold == 1]
        np.testing.assert_allclose(logits["logits"].to_numpy()[here], fit.logits(differences[here]), rtol=1e-5)

    def test_no_logits_know_the_votes_of_their_own_fold(self) -> None:
        rewards, shown = arena(90)
        changed = [replace(c, votes=[0.0, 1.0, 0.0] if c.fold == 1 else c.votes) for c in shown]
        before, after = (cross_fit(rewards, c, 1.0)["logits"].to_numpy() for c in (shown, changed))
        own = np.array([c.fold == 1 for c in shown])
        assert np.array_equal(before[own], after[own]) and not np.isclose(before[~own], after[~own]).all()

    def test_votes_of_the_test_split_fit_nobody(self) -> None:
        rewards, shown = arena(90)
        rows = [replace(c, fold=TEST) if i % 5 == 0 else c for i, c in enumerate(shown)]
        changed = [replace(c, votes=[0.0, 1.0, 0.0]) if c.fold == TEST else c for c in rows]
        before, after = (cross_fit(rewards, c, 1.0) for c in (rows, changed))
        assert before.equals(after) and before.filter(judge_fold=NO_FOLD).height == 18

    def test_says_what_was_fitted_and_what_it_is_worth(self, caplog: pytest.LogCaptureFixture) -> None:
        rewards, shown = arena(3000)
        fitted = cross_fitted(rewards, shown, 1.0)
        assert list(fitted.fits) == [0, 1, 2]
        for fit in fitted.fits.values():
            np.testing.assert_allclose(fit.weights, [2.0, 0.0], atol=0.15)
        assert 0.5 < fitted.log_loss < fitted.prior_log_loss - 0.1 < np.log(3)
        with caplog.at_level(logging.INFO):
            cross_fit(rewards, shown, 1.0)
        assert f"log loss on the folds left out: {fitted.log_loss:.4f}" in caplog.text
        assert "fold 2 left out: weights [" in caplog.text

    def test_incomplete_rewards_and_votes_are_refused(self) -> None:
        rewards, shown = arena(9)
        with pytest.raises(ValueError, match=r"1 of 9 conversations lack the rewards of a response, such as \['c4'\]"):
            cross_fit(rewards.filter((pl.col("id") != "c4") | (pl.col("response") == "b")), shown, 1.0)
        odd = rewards.with_columns(
            pl.when(pl.col("id") == "c2")
            .then(pl.lit([1.0]))
            .otherwise("rewards")
            .cast(pl.List(pl.Float32))
            .alias("rewards")
        )
        with pytest.raises(ValueError, match=r"responses have \[1, 2\] rewards each"):
            cross_fit(odd, shown, 1.0)
        with pytest.raises(ValueError, match=r"not finite for \['c\d'"):
            cross_fit(rewards.with_columns(pl.col("rewards") * float("nan")), shown, 1.0)
        with pytest.raises(ValueError, match="fold 0: no conversation of another fold has votes"):
            cross_fit(rewards, [replace(c, fold=0) for c in shown], 1.0)
