"""Which pairs of responses to show a judge, so that few comparisons rank them all.

Each response is compared with two others first, in a ring drawn at random, so that all are connected. Then, round by
round, those pairs are asked whose order is most likely to be wrong. A response takes part in a round once, so that a
round is one batch.
"""

from collections.abc import Iterator
from math import log2

import numpy as np

from deploy.ranking.strengths import Strengths

SEED = 0
MOST = 1000  # responses to one prompt: what is computed of their differences is a square of them


def comparisons(count: int) -> int:
    """How many pairs of `count` responses are shown: n log2(n) / 2, and never more than there are."""
    return min(count * (count - 1) // 2, max(count, int(count * log2(count) / 2)))


def ring(count: int) -> np.ndarray:
    """int [count, 2]: each response beside two others, in the same order drawn at random every time."""
    if count < 3:
        return np.array([[0, 1]])[: count - 1]
    drawn = np.random.default_rng(SEED).permutation(count)
    return np.column_stack([drawn, np.roll(drawn, -1)])


def next_round(strengths: Strengths, asked: np.ndarray, most: int) -> np.ndarray:
    """int [n, 2]: up to `most` pairs that are worth asking now, each response in one of them, none asked twice.

    `asked` int [m, 2] holds the pairs so far. Empty where all are asked.
    """
    gaps = np.abs(strengths.rewards[:, None] - strengths.rewards[None, :])
    sureness = gaps / np.sqrt(np.maximum(strengths.spread(), np.finfo(float).tiny))
    sureness[np.tril_indices_from(sureness)] = np.inf  # each pair once
    first, second = np.sort(asked, axis=1).T
    sureness[first, second] = np.inf
    return np.array(list(_matched(sureness, most)), np.int64).reshape(-1, 2)


def _matched(sureness: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """The least sure pairs, one after another, of responses that are free."""
    free = np.ones(len(sureness), bool)
    for place in np.argsort(sureness, axis=None, kind="stable"):
        i, j = divmod(int(place), len(sureness))
        if not most or np.isinf(sureness[i, j]):
            return
        if free[i] and free[j]:
            free[[i, j]] = False
            most -= 1
            yield i, j
