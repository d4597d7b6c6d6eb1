"""Means with their standard errors and intervals, over rows of which those of one prompt group are not independent.

The percentiles of a bootstrap (`eval.bootstrap`) serve large test sets. With some twenty prompts they miss the true
mean nearly twice as often as they say, the jackknife's t intervals here about as often
(`tests/eval/test_intervals.py` measures both), so `eval.means.Means` takes these below `FEW` prompts.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import stats

from core.errors import UserError

LEVEL = 0.05  # figures have 95% intervals
FEW = 60  # prompts; below, 95% intervals of bootstrap percentiles hold the truth less than 94% of the time, at 15 90%
MIN_GROUPS = 10  # of a slice or a bias: fewer prompts say little about one of many
Groups = Sequence[str] | np.ndarray | pl.Series
Interval = tuple[float, float]  # low and high
Weighted = tuple[np.ndarray, np.ndarray]  # values [n] and the weight of each; of weight 0 are rows outside of a slice


@dataclass(frozen=True)
class Estimate:
    """A mean or a difference of two, over `count` rows that weigh as much as `groups` independent prompts."""

    value: float
    error: float
    groups: float
    count: int

    @property
    def t(self) -> float:
        """How many standard errors the value lies from zero."""
        return self.value / max(self.error, sys.float_info.min)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of Student's t: no fewer than one, however uneven two prompts are."""
        return max(1.0, self.groups - 1)

    @property
    def p(self) -> float:
        """The chance of a value that far from zero where the true one is zero (two-sided)."""
        return float(2 * stats.t.sf(abs(self.t), self.freedom))

    def interval(self, level: float) -> tuple[float, float]:
        """Student's t interval that misses the true value with probability `level`."""
        reach = self._quantile(level) * self.error
        return self.value - reach, self.value + reach

    def share_interval(self, level: float) -> tuple[float, float]:
        """The same for a share of one, where it must not leave [0, 1] or shrink to a point at its ends.

        Wilson's interval at the sample size that explains the error (Korn and Graubard 1998, "Confidence intervals for
        proportions with small expected number of positive counts estimated from survey data").
        """
        variance = self.value * (1 - self.value)
        size = variance / self.error**2 if self.error and variance > 0 else self.groups
        z = self._quantile(level) ** 2 / size
        middle, reach = self.value + z / 2, math.sqrt(z * max(variance, 0) + z**2 / 4)
        return max(0.0, (middle - reach) / (1 + z)), min(1.0, (middle + reach) / (1 + z))

    def share_difference_interval(self, level: float) -> tuple[float, float]:
        """The same for the difference of two shares on the same rows; not of no width where no row differs.

        As if half a prompt more differed either way (Agresti and Min 2005, "Simple improved confidence intervals for
        comparing matched proportions").
        """
        reach = self._quantile(level) * math.hypot(self.error, 1 / (self.groups + 2))
        return max(-1.0, self.value - reach), min(1.0, self.value + reach)

    def _quantile(self, level: float) -> float:
        return float(stats.t.isf(level / 2, self.freedom))


@dataclass(frozen=True)
class Drawn(Estimate):
    """One whose interval and p-value are those of its bootstrap `means` [draws]; `error` is their spread."""

    means: np.ndarray

    @property
    def p(self) -> float:
        """Twice the smaller of the shares of draws at or below and at or above zero, and at most one.

        One more draw on either side is counted (Davison and Hinkley 1997, 4.2), so that it is never zero.
        """
        tails = [(1 + int(side.sum())) / (1 + len(self.means)) for side in (self.means <= 0, self.means >= 0)]
        return min(1.0, 2 * min(tails))

    def interval(self, level: float) -> tuple[float, float]:
        """The percentile interval that misses the true value with probability `level`."""
        low, high = np.quantile(self.means, (level / 2, 1 - level / 2))
        return float(low), float(high)


class Jackknife:
    """Means over rows of which those of one group are not independent.

    The error is the spread of the values that leave one group out, the degrees of freedom are those of the groups'
    effective number, (Σ size)² / Σ size² (MacKinnon, Nielsen and Webb 2023, "Cluster-robust inference: a guide to
    empirical practice": CV3; Kish 1965 for the number). Nothing is drawn, so nothing depends on a seed.
    """

    def __init__(self, groups: Groups):
        names, members = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self.members, self.count = members, len(names)

    def whole(self, values: np.ndarray) -> Estimate:
        """The mean of all `values`, however few groups there are, of which there must be two."""
        estimate = self._estimate(0, (values, np.ones(len(values))))
        assert estimate is not None
        return estimate

    def mean(self, values: np.ndarray, weights: np.ndarray) -> Estimate | None:
        """The weighted mean of `values`; None where fewer than `MIN_GROUPS` groups tell it."""
        return self._estimate(MIN_GROUPS, (values, weights))

    def difference(self, these: Weighted, those: Weighted) -> Estimate | None:
        """The mean of `these` less the mean of `those`, which may be of the same groups; None as in `mean`."""
        return self._estimate(MIN_GROUPS, these, those)

    def _estimate(self, least: int, *sides: Weighted) -> Estimate | None:
        value, effective = 0.0, math.inf
        left_out, touched = np.zeros(self.count), np.zeros(self.count, dtype=bool)
        for sign, (values, weights) in zip((1, -1), sides, strict=False):
            sums, sizes = (np.bincount(self.members, of, self.count) for of in (values * weights, weights))
            total, size = sums.sum(), sizes.sum()
            effective = min(effective, effective_number(sizes))
            if effective < least:
                return None
            value += sign * float(total / size)
            left_out += sign * (total - sums) / (size - sizes)
            touched |= sizes > 0
        groups = np.count_nonzero(touched)
        error = math.sqrt((groups - 1) / groups * float(((left_out - value) ** 2)[touched].sum()))
        return Estimate(value, error, float(effective), int(np.count_nonzero(sides[0][1])))


def effective_number(sizes: np.ndarray) -> float:
    """How many groups of one size tell as much as these: (Σ size)² / Σ size² (Kish 1965), 0 where all are empty."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def number_groups(groups: Groups) -> np.ndarray:
    """Groups as numbers 0, 1, ... in the order of their names, whatever the order of the rows: int64 [n].

    Raises `UserError` for a single group, which says nothing about other prompts.
    """
    members = pl.Series(groups).rank("dense").cast(pl.Int64).to_numpy() - 1
    if members.max(initial=0) < 1:
        raise UserError(f"all {len(members)} conversations share one group: an interval needs at least two prompts")
    return members
