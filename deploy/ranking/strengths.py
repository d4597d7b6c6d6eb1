"""How good each of several responses to one prompt is, from a judge's opinions on some pairs of them.

The model is Bradley and Terry's (1952): P(i is preferred to j) = 1 / (1 + exp(-(r_i - r_j))). A tie counts half for
either side. An opinion is a probability, not a vote, so the fit minimises a cross-entropy against shares.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax
from scipy.stats import norm, rankdata

from core.labels import Labels, among, with_tie
from core.pointwise import Choice

PRIOR = 0.01  # of the strengths, as a precision: it centres them, and holds one that always wins
TOLERANCE, STEPS = 1e-10, 100
LEVEL = 0.95


@dataclass(frozen=True)
class Opinions:
    """What a judge thinks of pairs of responses.

    `pairs` int [n, 2]: two responses by their places in the list; `shares` float [n]: how often the first of them is
    preferred, a tie counted half.
    """

    pairs: np.ndarray
    shares: np.ndarray

    def and_then(self, more: "Opinions") -> "Opinions":
        """These, and `more` of them."""
        return Opinions(np.concatenate([self.pairs, more.pairs]), np.concatenate([self.shares, more.shares]))


NONE = Opinions(np.empty((0, 2), np.int64), np.empty(0))


@dataclass(frozen=True)
class Standing:
    """How several responses to one prompt compare.

    `rewards` float [n]; `wins` float [n]: how likely each is preferred to another of them, a tie counted half;
    `intervals` float [n, 2]: the 95% interval of each reward, None of a judge that names none.
    """

    rewards: np.ndarray
    wins: np.ndarray
    intervals: np.ndarray | None

    def ranks(self) -> np.ndarray:
        """int [n]: 1 is the best; equal rewards share one."""
        return np.asarray(rankdata(-self.rewards, method="min").astype(int))


@dataclass(frozen=True)
class Strengths:
    """`rewards` float [n], of mean 0, in nats: a difference is the logarithm of the odds of winning.

    `covariance` float [n, n]: how far they may be off, for what the judge would say of all pairs.
    """

    rewards: np.ndarray
    covariance: np.ndarray

    def intervals(self) -> np.ndarray:
        """float [n, 2]: the 95% interval of each reward."""
        width = norm.ppf((1 + LEVEL) / 2) * np.sqrt(np.diagonal(self.covariance))
        return np.column_stack([self.rewards - width, self.rewards + width])

    def wins(self) -> np.ndarray:
        """float [n, n]: the probability that the row's response is preferred to the column's, ties counted half."""
        return np.asarray(expit(self.rewards[:, None] - self.rewards[None, :]))

    def standing(self) -> Standing:
        """What they amount to."""
        return Standing(self.rewards, against_others(self.wins()), self.intervals())

    def spread(self) -> np.ndarray:
        """float [n, n]: the variance of each difference of two rewards."""
        own = np.diagonal(self.covariance)
        return np.maximum(own[:, None] + own[None, :] - 2 * self.covariance, 0)


def against_others(wins: np.ndarray) -> np.ndarray:
    """The mean of each row but for its own column: [n, n] -> [n]."""
    return np.asarray((wins.sum(axis=1) - np.diagonal(wins)) / max(len(wins) - 1, 1))


def pointwise_standing(
    rewards: np.ndarray, choice: Choice, recalibrate: Callable[[np.ndarray], np.ndarray], labels: Labels
) -> Standing:
    """What the `rewards` [n] of a pointwise judge amount to."""
    count = len(rewards)
    pairs = choice.logits(rewards.repeat(count), np.tile(rewards, count))
    wins = shares_of(recalibrate(among(pairs, labels))).reshape(count, -1)
    return Standing(rewards, against_others(wins), None)


def shares_of(logits: np.ndarray) -> np.ndarray:
    """How often a is preferred, a tie counted half: logits [n, labels] -> [n]."""
    a, _, tie = np.moveaxis(with_tie(softmax(logits.astype(np.float64), axis=1), 0), 1, 0)
    return np.asarray(a + tie / 2)


def fit(count: int, opinions: Opinions) -> Strengths:
    """The strengths of `count` responses that explain `opinions` best, by Newton's method.

    The scale of the errors is estimated from the opinions themselves, as a quasi-likelihood has it (McCullagh and
    Nelder, "Generalized Linear Models", 1989): a judge that contradicts itself little is believed after few pairs.
    """
    i, j = opinions.pairs[:, 0], opinions.pairs[:, 1]
    rewards = np.zeros(count)
    for _ in range(STEPS):
        expected = expit(rewards[i] - rewards[j])
        information = _information(count, i, j, expected * (1 - expected))
        step = np.linalg.solve(information, _gradient(count, i, j, opinions.shares - expected) - PRIOR * rewards)
        rewards += step / max(1, np.abs(step).max())  # at most one nat at a time, or it may swing ever wider
        if np.abs(step).max() < TOLERANCE:
            break
    expected = expit(rewards[i] - rewards[j])
    weights = expected * (1 - expected)
    free = len(opinions.shares) - (count - 1)
    errors = (opinions.shares - expected) ** 2 / np.maximum(weights, np.finfo(float).tiny)
    scale = float(errors.sum() / free) if free > 0 else 1.0
    covariance = scale * np.linalg.inv(_information(count, i, j, weights))
    centre = np.eye(count) - 1 / count
    return Strengths(rewards - rewards.mean(), centre @ covariance @ centre)


def _gradient(count: int, i: np.ndarray, j: np.ndarray, surplus: np.ndarray) -> np.ndarray:
    return np.bincount(i, surplus, count) - np.bincount(j, surplus, count)


def _information(count: int, i: np.ndarray, j: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The matrix of second derivatives, with the prior's."""
    found = np.diag(np.bincount(i, weights, count) + np.bincount(j, weights, count) + PRIOR)
    np.subtract.at(found, (i, j), weights)
    np.subtract.at(found, (j, i), weights)
    return found
