"""Which conversations to give a second opinion, where it cannot be had for all.

A second opinion is the verdict of a larger judge, or the other order of the judge that has read one. How much it lowers
the log loss can be estimated without votes: KL(second || first) is the extra loss that the second opinion expects of
the first. A judge that knows its matter gains where it hesitates. One that mostly guesses gains where it is sure, as a
large margin is then mostly noise. So a pilot, conversations drawn at random, gets both opinions first, and a regression
on what the first tells (`Opinions.clues`) says of every other conversation how much to expect. Those with the most for
their cost come next. docs/predict.md has the measurements.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax
from scipy.stats import rankdata

from eval.metrics import kl_rows

PILOT_SHARE = 0.25  # at most, of the conversations that get a second opinion
RIDGE = 16.0  # what a clue's weight costs, squared and halved, against the fit of one conversation: for small pilots
STEEPEST = 20.0  # of the logarithm of an expected gain: far beyond what a pilot can tell


@dataclass(frozen=True)
class Opinions:
    """What a judge thinks of some conversations, and the `tokens` [n] that it read for each.

    `ab`, `ba`: logits [n, labels] as each order was shown; the same array twice where one order was.
    """

    ab: np.ndarray
    ba: np.ndarray
    tokens: np.ndarray

    @property
    def logits(self) -> np.ndarray:
        """The mean over the orders that were shown, float64 [n, labels]."""
        return np.asarray((self.ab.astype(np.float64) + self.ba) / 2)

    @cached_property
    def clues(self) -> np.ndarray:
        """What tells of the gain of a second opinion: margin, entropy, how far the orders differ, and length, [n, 4].

        Each by its rank among all, spread evenly about 0 with variance 1, so that logits of any size will do.
        """
        p = softmax(self.logits, axis=1)
        entropy = -(p * np.log(np.maximum(p, np.finfo(float).tiny))).sum(axis=1)
        apart = expected_gain(self.ab, self.ba) + expected_gain(self.ba, self.ab)
        found = (margin(self.logits), entropy, apart, self.tokens)
        ranks = [(rankdata(clue) - 0.5) / len(clue) - 0.5 for clue in found]
        return np.stack(ranks, axis=1) * np.sqrt(12)


def draw_pilot(rows: int, quota: int, most: int, seed: int = 0) -> np.ndarray:
    """The positions, of `rows`, of the conversations that get a second opinion before any other: the same each time.

    `most` at most, and a part of the `quota` that is to get one in all.
    """
    size = min(most, int(quota * PILOT_SHARE))
    return np.random.default_rng(seed).permutation(rows)[:size]


def in_turn(first: Opinions, pilot: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The positions of all that are not in the `pilot`, those first whose expected gain is the highest for its cost.

    `second`: the logits [pilot, labels] that stand after the second opinion. The cost of one is taken to go with what
    the first took. Without a pilot nothing is known of gains, and the cheapest come first.
    """
    gain = expected_gain(first.logits[pilot], second)
    worth = estimate(first.clues, pilot, gain) / np.maximum(first.tokens, 1)
    order = np.argsort(-worth, kind="stable")
    return order[~np.isin(order, pilot)]


def expected_gain(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL(softmax of `second` || softmax of `first`) in nats: logits [n, labels] twice -> [n]."""
    return kl_rows(softmax(second.astype(np.float64), axis=1), softmax(first.astype(np.float64), axis=1))


def margin(logits: np.ndarray) -> np.ndarray:
    """How sure a judge is: the most likely label's probability minus the next one's, [n, labels] -> [n]."""
    ordered = np.sort(softmax(logits.astype(np.float64), axis=1), axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def estimate(clues: np.ndarray, pilot: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The expected gain of every row of `clues` [n, k], as a multiple of the `pilot`'s mean, from the pilot's `gain`.

    A Poisson regression with a logarithmic link and a ridge penalty (Gourieroux, Monfort and Trognon 1984: its mean is
    right whatever the distribution): never negative, monotone in each clue, and all alike where the pilot says nothing.
    """
    if not gain.any():
        return np.ones(len(clues))
    target, known = gain / gain.mean(), clues[pilot]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        eta = np.clip(weights[0] + known @ weights[1:], -STEEPEST, STEEPEST)
        surplus = np.exp(eta) - target
        ridge = RIDGE * weights[1:]
        value = (np.exp(eta) - target * eta).sum() + ridge @ weights[1:] / 2
        return float(value), np.concatenate([[surplus.sum()], known.T @ surplus + ridge])

    weights = minimize(loss, np.zeros(clues.shape[1] + 1), jac=True, method="L-BFGS-B").x
    return np.exp(np.clip(weights[0] + clues @ weights[1:], -STEEPEST, STEEPEST))
