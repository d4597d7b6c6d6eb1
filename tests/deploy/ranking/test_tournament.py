"""Ranking by few comparisons: the order of all pairs, intervals that hold, the same pairs from the same opinions."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import kendalltau

from bench.ranking import judge
from deploy.ranking.pairing import comparisons
from deploy.ranking.strengths import Opinions, fit, shares_of
from deploy.ranking.tournament import Tournament

COUNT = 60


def held(count: int, asks: Callable[[np.ndarray], np.ndarray]) -> tuple[Tournament, list[np.ndarray]]:
    tournament, rounds = Tournament(count), []
    while len(pairs := tournament.pairs()):
        tournament.tell(pairs, asks(pairs))
        rounds.append(pairs)
    return tournament, rounds


def all_pairs(count: int) -> np.ndarray:
    return np.column_stack(np.triu_indices(count, 1))


def test_a_tenth_of_the_pairs_ranks_about_as_well_as_all() -> None:
    few, every = [], []
    for seed in range(20):
        truth = np.random.default_rng(1000 + seed).normal(0, 1.5, COUNT)
        asks = judge(truth, 0.1, seed)
        tournament, rounds = held(COUNT, asks)
        asked = np.concatenate(rounds)
        assert len(asked) == comparisons(COUNT) <= COUNT * (COUNT - 1) / 2 / 10
        assert len({frozenset(pair) for pair in asked.tolist()}) == len(asked)
        whole = fit(COUNT, Opinions(all_pairs(COUNT), asks(all_pairs(COUNT))))
        few.append(kendalltau(tournament.strengths().rewards, truth).statistic)
        every.append(kendalltau(whole.rewards, truth).statistic)
    assert np.mean(every) - np.mean(few) < 0.02


def test_a_judge_that_never_contradicts_itself_is_taken_at_its_word() -> None:
    truth = np.random.default_rng(0).normal(0, 1, 12)
    found, _ = held(12, judge(truth, 0, 0))
    np.testing.assert_allclose(found.strengths().rewards, truth - truth.mean(), atol=0.15)
    assert kendalltau(found.strengths().rewards, truth).statistic == pytest.approx(1)


def test_intervals_hold_what_all_pairs_would_have_said() -> None:
    inside = []
    for seed in range(30):
        truth = np.random.default_rng(seed).normal(0, 1, 30)
        asks = judge(truth, 0.5, seed)
        strengths = held(30, asks)[0].strengths()
        low, high = strengths.intervals().T
        centred = truth - truth.mean()
        inside += ((low <= centred) & (centred <= high)).tolist()
    assert 0.9 < np.mean(inside) < 0.99


def test_it_finds_its_way_again() -> None:
    asks = judge(np.random.default_rng(3).normal(size=20), 0.5, 3)
    _, rounds = held(20, asks)
    _, again = held(20, asks)
    assert all(np.array_equal(one, other) for one, other in zip(rounds, again, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_few_responses_are_all_compared(count: int) -> None:
    truth = np.arange(count, dtype=float)
    tournament, rounds = held(count, judge(truth, 0, 0))
    assert sum(map(len, rounds)) == comparisons(count) and np.argsort(tournament.strengths().rewards).tolist() == [
        *range(count)
    ]


def test_one_that_always_wins_stays_finite() -> None:
    rewards = fit(2, Opinions(np.array([[0, 1]]), np.array([1.0]))).rewards
    assert np.isfinite(rewards).all() and rewards[0] > rewards[1]


def test_a_tie_counts_half_for_either_side() -> None:
    logits = np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 2.0], [5.0, 5.0, -3.0]])
    first, second, level = shares_of(logits)
    assert first + second == pytest.approx(1) and level == pytest.approx(0.5) and first > 0.5
    assert shares_of(np.array([[2.0, 0.0]]))[0] == pytest.approx(expit(2.0)) and logit(first) > 0
