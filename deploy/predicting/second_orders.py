"""Which conversations to judge in the other order, too, when there is no time for all.

The mean over both orders has a lower log loss than one order. By how much is told without votes: it is the divergence
KL(mean || one), the loss that the mean expects the single order to have more. A judge that knows its matter gains where
it hesitates. One that mostly guesses gains where it is sure, as a large margin is then mostly the noise of the order
shown. So a few conversations, drawn at random, are judged twice first, and tell which of the two this judge is.
docs/predict.md has the measurements.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.special import log_softmax, softmax

SEED = 0
PILOT_SHARE = 0.25  # at most, of the conversations that are to be judged twice


def draw_pilot(rows: int, quota: int, most: int) -> np.ndarray:
    """The positions, of `rows`, of the conversations that are judged twice before any other: the same in every run."""
    size = min(most, int(quota * PILOT_SHARE))
    return np.random.default_rng(SEED).permutation(rows)[:size]


def expected_gain(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL(softmax of the mean || softmax of `first`) in nats: logits [n, labels] of either order -> [n]."""
    mean = log_softmax((first.astype(np.float64) + second) / 2, axis=1)
    return np.asarray((np.exp(mean) * (mean - log_softmax(first.astype(np.float64), axis=1))).sum(axis=1))


def margin(logits: np.ndarray) -> np.ndarray:
    """How sure a judge is: the most likely label's probability minus the next one's, [n, labels] -> [n]."""
    ordered = np.sort(softmax(logits.astype(np.float64), axis=1), axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def gains_where_sure(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether, on a pilot of either order, the expected gain grows with the margin (Spearman's correlation)."""
    pilot = pl.DataFrame({"margin": margin(first), "gain": expected_gain(first, second)})
    correlation = pilot.select(pl.corr("margin", "gain", method="spearman")).item()
    return bool((correlation or 0) > 0)  # null or NaN for one row and for constants


def by_need(first: np.ndarray, where_sure: bool) -> np.ndarray:
    """Positions of `first` [n, labels] in the order in which they deserve a second look, equal margins as they are."""
    sureness = margin(first)
    return np.argsort(-sureness if where_sure else sureness, kind="stable")


def chunks(positions: Sequence[int] | np.ndarray, size: int) -> list[list[int]]:
    """`positions` in pieces of `size`, the last one shorter."""
    return [[int(p) for p in positions[start : start + size]] for start in range(0, len(positions), size)]
