"""Which differences chance cannot explain: means over rows that come in groups, with intervals that hold for few too.

The percentiles of a bootstrap (`metrics.bootstrap_means`) serve large test sets. With some twenty prompts they miss the
true mean nearly twice as often as they say, the jackknife's t intervals here about as often
(`tests/eval/test_inference.py` measures both), so `metrics.Means` takes these below `FEW` prompts.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

FEW = 60  # prompts; below, 95% intervals of bootstrap percentiles hold the truth less than 94% of the time, at 15 90%
MIN_GROUPS = 10  # of a slice or a bias: fewer prompts say little about one of many
Groups = Sequence[str] | np.ndarray | pl.Series
UNITS = {"win rate": (100, 1, "points"), "probability": (100, 1, "points"), "nats": (1, 4, "nats")}  # in a sentence
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

    def _estimate(self, least: int, *parts: Weighted) -> Estimate | None:
        value, effective = 0.0, math.inf
        left_out, touched = np.zeros(self.count), np.zeros(self.count, dtype=bool)
        for sign, (values, weights) in zip((1, -1), parts, strict=False):
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
        return Estimate(value, error, float(effective), int(np.count_nonzero(parts[0][1])))


def effective_number(sizes: np.ndarray) -> float:
    """How many groups of one size tell as much as these: (Σ size)² / Σ size² (Kish 1965), 0 where all are empty."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


@dataclass(frozen=True)
class Bias:
    """One way in which a judge may be wrong: how much, between what bounds, and in a sentence.

    `value`, `low` and `high` are in `unit` (win rates and probabilities are shares of one), None where no rows tell.
    `flagged`: the interval leaves zero out. `table`: rows to plot, each with x, value, low, high and count.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    flagged: bool
    sentence: str
    table: list[dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """The words of a sentence: what is compared with what, and what it means where it is truly above or below."""

    subject: str
    baseline: str
    above: str
    below: str


def conclude(
    name: str,
    unit: str,
    estimate: Estimate | None,
    claim: Claim,
    table: list[dict[str, Any]],
    *,
    level: float,
    among: int = 1,
    remark: str = "",
) -> Bias:
    """What an estimate says at error rate `level`, which is split where it is the most striking `among` several."""
    if estimate is None:
        why = f"{claim.subject} cannot be compared with {claim.baseline}: fewer than {MIN_GROUPS} prompts here tell it."
        return Bias(name, None, None, None, unit, False, why + remark, table)
    low, high = estimate.interval(level / among)
    flagged, above = low > 0 or high < 0, estimate.value >= 0
    verdict = (claim.above if above else claim.below) if flagged else "nothing that chance cannot explain"
    scale, digits, noun = UNITS[unit]
    size = f"{abs(estimate.value) * scale:.{digits}f} {noun} {'above' if above else 'below'} {claim.baseline}"
    reach = f"{100 * (1 - level):g}% interval {low * scale:+z.{digits}f} to {high * scale:+z.{digits}f}"
    together = f", holding for all {among} at once" if among > 1 else ""
    sentence = f"{claim.subject} is {size} ({reach}{together}): {verdict}.{remark}"
    return Bias(name, estimate.value, low, high, unit, flagged, sentence, table)


def conclude_most_striking(
    name: str,
    unit: str,
    estimates: Mapping[str, Estimate | None],
    claim: Claim,
    rows: Mapping[str, dict[str, Any]],
    *,
    level: float,
    whole: str,
) -> Bias:
    """The estimate that chance explains least, its interval wide enough to answer for all of them.

    That is the one of the smallest p-value, so it is flagged where Holm's first step passes, and no row is flagged
    without it. Its name, or that of the `whole` where there is none, goes into the claim's subject; of equals it is the
    last. `rows` become the table, each with `flagged`.
    """
    told = {x: estimate for x, estimate in estimates.items() if estimate is not None}
    striking = min(reversed(told), key=lambda x: _strikingness(told[x]), default=None)
    flagged = flags(told, level)
    return conclude(
        name,
        unit,
        told[striking] if striking else None,
        replace(claim, subject=claim.subject.format(striking or whole)),
        [{**row, "flagged": flagged.get(x, False)} for x, row in rows.items()],
        level=level,
        among=len(told),
    )


def _strikingness(estimate: Estimate) -> tuple[float, float]:
    """Sorts the most striking first. Rounded, as the order of the rows moves last digits and must not choose."""
    return float(f"{estimate.p:.6g}"), -round(abs(estimate.t), 6)


def flags(estimates: Mapping[str, Estimate], level: float) -> dict[str, bool]:
    """Which of several estimates are not zero; the chance of a single false one among them is at most `level`.

    Holm 1979, "A simple sequentially rejective multiple test procedure": from the smallest p-value on, against level
    over the number of those left, until one is not small enough.
    """
    found = dict.fromkeys(estimates, False)
    for rank, x in enumerate(sorted(estimates, key=lambda x: estimates[x].p)):
        if estimates[x].p > level / (len(estimates) - rank):
            break
        found[x] = True
    return found


def bounds(estimate: Estimate | None, level: float, name: str = "", share: bool = False) -> dict[str, float | None]:
    """An estimate as cells of a row: value, low and high, or `name`, `name`_low and `name`_high; None without one."""
    keys = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    if estimate is None:
        return dict.fromkeys(keys)
    ends = estimate.share_interval(level) if share else estimate.interval(level)
    return dict(zip(keys, (estimate.value, *ends), strict=True))


def quantile_bins(values: np.ndarray, bins: int) -> list[np.ndarray]:
    """Which rows fall into each of `bins` ranges of about as many rows, from low to high: bool [n] each, none empty."""
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins)) if values.size else np.empty(0)
    place = np.searchsorted(edges, values)
    return [place == at for at in np.unique(place)]
