"""Which biases chance cannot explain, each as a sentence with its interval and a table to plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from eval.intervals import MIN_GROUPS, Estimate

UNITS = {"win rate": (100, 1, "points"), "probability": (100, 1, "points"), "nats": (1, 4, "nats")}  # in a sentence


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a bias's table, to be plotted: a value with its interval, None where no prompts tell, of `count`
    conversations."""

    x: str
    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class WinRates(Row):
    """A win rate's excess over people's, and both rates."""

    judge: float | None
    people: float | None


@dataclass(frozen=True, kw_only=True)
class WinRatesByLength(WinRates):
    """`log_loss`: the judge's on these rows."""

    log_loss: float


@dataclass(frozen=True, kw_only=True)
class OneOfSeveral(WinRates):
    """`flagged` by Holm's procedure among all rows of the table."""

    flagged: bool = False


@dataclass(frozen=True, kw_only=True)
class Slice(Row):
    """A judge on a part of the data: `value` is its log loss, `surprise` that beyond the entropy that it expected, and
    `difference` its log loss less that on all other rows. `flagged` as in `OneOfSeveral`."""

    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    surprise: float | None
    surprise_low: float | None
    surprise_high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    flagged: bool = False


Compared = TypeVar("Compared", OneOfSeveral, Slice)


@dataclass(frozen=True)
class Bias:
    """One way in which a judge may be wrong: how much, between what bounds, and in a sentence.

    `value`, `low` and `high` are in `unit` (win rates and probabilities are shares of one), None where no rows tell.
    `flagged`: the interval leaves zero out.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    unit: str
    flagged: bool
    sentence: str
    table: Sequence[Row]


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
    table: Sequence[Row],
    *,
    level: float,
    among: int = 1,
    families: int = 1,
    remark: str = "",
) -> Bias:
    """What an estimate says at error rate `level`, which is split where it is the most striking `among` several, and
    where several `families` of such share it."""
    if estimate is None:
        why = f"{claim.subject} cannot be compared with {claim.baseline}: fewer than {MIN_GROUPS} prompts here tell it."
        return Bias(name, None, None, None, unit, False, why + remark, table)
    low, high = estimate.interval(level / families / among)
    flagged, above = low > 0 or high < 0, estimate.value >= 0
    verdict = (claim.above if above else claim.below) if flagged else "nothing that chance cannot explain"
    scale, digits, noun = UNITS[unit]
    size = f"{abs(estimate.value) * scale:.{digits}f} {noun} {'above' if above else 'below'} {claim.baseline}"
    reach = f"{100 * (1 - level):g}% interval {low * scale:+z.{digits}f} to {high * scale:+z.{digits}f}"
    together = f", holding for all {among} at once" if among > 1 else ""
    together += f" and for {families} tags" if families > 1 else ""
    sentence = f"{claim.subject} is {size} ({reach}{together}): {verdict}.{remark}"
    return Bias(name, estimate.value, low, high, unit, flagged, sentence, table)


def conclude_most_striking(
    name: str,
    unit: str,
    estimates: Mapping[str, Estimate | None],
    claim: Claim,
    rows: Mapping[str, Compared],
    *,
    level: float,
    whole: str,
    families: int = 1,
) -> Bias:
    """The estimate that chance explains least, its interval wide enough to answer for all of them.

    That is the one of the smallest p-value, so it is flagged where Holm's first step passes, and no row is flagged
    without it. Its name, or that of the `whole` where there is none, goes into the claim's subject; of equals it is the
    last. `rows` become the table, flagged by Holm's procedure. Several `families` of estimates share the level.
    """
    told = {x: estimate for x, estimate in estimates.items() if estimate is not None}
    striking = min(reversed(told), key=lambda x: _strikingness(told[x]), default=None)
    flagged = flags(told, level / families)
    return conclude(
        name,
        unit,
        told[striking] if striking else None,
        replace(claim, subject=claim.subject.format(striking or whole)),
        [replace(row, flagged=flagged.get(x, False)) for x, row in rows.items()],
        level=level,
        among=len(told),
        families=families,
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
    """An estimate as fields of a row: value, low and high, or `name`, `name`_low and `name`_high; None without one."""
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
