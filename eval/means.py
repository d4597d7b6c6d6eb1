"""Means of columns of rows with their intervals, and paired differences between them."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from eval.bootstrap import Resampling, bootstrap_means
from eval.intervals import FEW, LEVEL, Drawn, Estimate, Groups, Interval, Jackknife, effective_number, number_groups

SHARES = ("accuracy", "auc", "flip_rate", "agreement", "majority", "largest_share")  # figures that are shares of one
BOOTSTRAP, JACKKNIFE = "bootstrap", "jackknife"
METHODS = {BOOTSTRAP: "bootstrap of prompts", JACKKNIFE: "jackknife, for few prompts"}  # of intervals, in words


@dataclass(frozen=True)
class Difference:
    """A paired comparison of two judges: `ci` at 95%, `p` two-sided, `beats`: the interval lies above zero."""

    difference: float
    ci: Interval
    p: float
    beats: bool

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        low, high = estimate.interval(LEVEL)
        return cls(estimate.value, (low, high), estimate.p, low > 0)


class Means:
    """Means of columns of rows, {key: float64 [n]}, and how sure they and their differences are, prompts being drawn.

    Of rows that weigh as much as `FEW` independent prompts they are bootstrapped, all on the same draws; of fewer, for
    which percentiles are too narrow, errors are the jackknife's and intervals Student's t. `method` says which. Raises
    `UserError` for a single group.
    """

    def __init__(self, columns: Mapping[Any, np.ndarray], groups: Groups, resampling: Resampling):
        members = number_groups(groups)
        self.columns = columns
        self.prompts = effective_number(np.bincount(members))
        self.method = JACKKNIFE if self.prompts < FEW else BOOTSTRAP
        if self.method == JACKKNIFE:
            self.jackknife = Jackknife(members)
        else:
            rows = np.stack([*columns.values()]).T
            drawn = bootstrap_means(rows, members, resampling.draws, resampling.seed)
            self.drawn = dict(zip(columns, drawn.T, strict=True))

    def __contains__(self, key: Hashable) -> bool:
        return key in self.columns

    def mean(self, key: Hashable) -> Estimate:
        """The mean of one column."""
        if self.method == JACKKNIFE:
            return self.jackknife.whole(self.columns[key])
        return self._drawn(self.columns[key].mean(), self.drawn[key])

    def difference(self, key: Hashable, other: Hashable) -> Estimate:
        """The mean of one column less that of another, paired."""
        if self.method == JACKKNIFE:
            return self.jackknife.whole(self.columns[key] - self.columns[other])
        return self._drawn(self.columns[key].mean() - self.columns[other].mean(), self.drawn[key] - self.drawn[other])

    def figures(self, keys: Mapping[str, Hashable]) -> dict[str, Any]:
        """Fields of a result, from {figure: key}: `figure` with its mean, and `figure`_ci with the 95% interval.

        Both are None for a key that is not there. No figure is below zero; those of `SHARES` are not above one either.
        """
        found: dict[str, Any] = {}
        for figure, key in keys.items():
            estimate = self.mean(key) if key in self else None
            found |= {figure: estimate and estimate.value, f"{figure}_ci": estimate and _bounds(estimate, figure)}
        return found

    def _drawn(self, value: float, means: np.ndarray) -> Drawn:
        count = len(next(iter(self.columns.values())))
        return Drawn(float(value), float(means.std(ddof=1)), self.prompts, count, means)


def _bounds(estimate: Estimate, figure: str) -> Interval:
    low, high = estimate.share_interval(LEVEL) if figure in SHARES else estimate.interval(LEVEL)
    return max(0.0, low), high


def paired_difference(losses: np.ndarray, other: np.ndarray, groups: Groups, resampling: Resampling) -> Difference:
    """How much higher `losses` is than `other` on the same rows: above zero where `other` is the better judge.

    Because both see the same conversations, this is far narrower than two separate intervals suggest.
    """
    assert losses.shape == other.shape, f"not the same rows: {losses.shape} and {other.shape}"
    return Difference.of(Means({"gap": losses - other}, groups, resampling).mean("gap"))
