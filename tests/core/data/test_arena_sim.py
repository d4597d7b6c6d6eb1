"""The simulated arena follows its true distribution, which the texts show."""

import numpy as np
import pytest

from core.data.arena_sim import TOPICS, bayes_log_loss, simulate, vote_probabilities
from core.data.config import SimulateConfig


def test_same_seed_same_arena() -> None:
    assert (
        simulate(SimulateConfig(20, 3))[0] == simulate(SimulateConfig(20, 3))[0] != simulate(SimulateConfig(20, 4))[0]
    )


def test_votes_follow_the_law_and_nobody_beats_its_entropy() -> None:
    conversations, truth = simulate(SimulateConfig(20_000, 5))
    probabilities = truth["probabilities"].to_numpy()
    votes = np.array([c.votes for c in conversations])
    losses = -(votes * np.log(probabilities)).sum(1)
    assert abs(losses.mean() - bayes_log_loss(truth)) < 4 * losses.std() / len(losses) ** 0.5
    for label in range(3):  # calibrated: where the true distribution says p, a share p of the votes follows
        high = probabilities[:, label] > np.median(probabilities[:, label])
        spread = (probabilities[high, label] * (1 - probabilities[high, label])).sum() ** 0.5
        assert abs(votes[high, label].sum() - probabilities[high, label].sum()) < 4 * spread
    for judge in (probabilities**1.3, probabilities**0.7, np.ones_like(probabilities)):
        wrong = judge / judge.sum(1, keepdims=True)
        assert -(probabilities * np.log(wrong)).sum(1).mean() > bayes_log_loss(truth)


def test_probabilities_are_davidsons_model_with_noise() -> None:
    a, b, tie = vote_probabilities(1.0, 0.0)
    assert a + b + tie == pytest.approx(1)
    b_swapped, a_swapped, tie_swapped = vote_probabilities(0.0, 1.0)
    assert a > b and a > a_swapped and b < b_swapped  # the first position is an advantage
    assert min(vote_probabilities(50.0, 0.0)) == pytest.approx(0.02, abs=1e-6)  # noise: nothing is ever certain
    assert tie > tie_swapped or tie < tie_swapped


def test_no_topic_is_named_in_an_answer() -> None:
    conversations, _ = simulate(SimulateConfig(500, 6))
    for c in conversations:
        topic = max((t for t in TOPICS if t in c.prompt[0]), key=len)
        assert any(
            statement in side[0] for side in (c.response_a, c.response_b) for t in TOPICS.values() for statement in t
        )
        assert topic in c.prompt[0]
