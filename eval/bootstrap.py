"""The cluster bootstrap: means of rows when whole prompt groups are drawn with replacement."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eval.intervals import LEVEL, Groups, Interval, number_groups

BLOCK = 1 << 16  # groups drawn at a time: 16 random bits each, without rejection, and counts that stay in cache


@dataclass(frozen=True)
class Resampling:
    """How many times groups are drawn, and from which seed."""

    draws: int
    seed: int


def resample(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of `count` groups is in a draw of as many with replacement: float32 [count], `draws` times.

    Exact multinomial counts, made block by block in one array that the next draw overwrites.
    """
    starts = range(0, count, BLOCK)
    sizes = [min(BLOCK, count - start) for start in starts]
    rng = np.random.default_rng(seed)
    times = np.empty(count, np.float32)
    for _ in range(draws):
        drawn = rng.multinomial(count, [size / count for size in sizes])
        for start, size, number in zip(starts, sizes, drawn, strict=True):
            picks = rng.integers(size, size=number, dtype=np.uint16)
            times[start : start + size] = np.bincount(picks, minlength=size)
        yield times


def bootstrap_means(rows: np.ndarray, groups: Groups, draws: int, seed: int) -> np.ndarray:
    """Means of the columns of `rows` ([n] or [n, k]) under resampling of whole groups: float64 [draws, k].

    Conversations with the same first prompt are not independent, so groups are drawn with replacement and a draw's
    mean is the sum over its rows divided by their number (cluster bootstrap: Davison and Hinkley 1997, "Bootstrap
    Methods and their Application", 3.8); with one row a group it is the plain bootstrap. All columns see the same
    draws, whatever the order of the rows, so a judge more costs a column, not another bootstrap. Memory does not grow
    with `draws`. Raises `UserError` for a single group.
    """
    columns = rows.reshape(len(rows), -1).T
    assert len(groups) == len(rows), f"{len(groups)} groups for {len(rows)} rows"
    members = number_groups(groups)
    means = [column.mean(dtype=np.float64) for column in columns]
    sums = np.empty((len(columns) + 1, members.max() + 1), np.float32)
    for i, column in enumerate(columns):
        sums[i] = np.bincount(members, weights=column - means[i])  # what float32 loses is small beside the deviations
    sums[-1] = np.bincount(members)
    totals = np.zeros((draws, len(sums)))
    for total, times in zip(totals, resample(sums.shape[1], draws, seed), strict=True):
        for start in range(0, len(times), BLOCK):
            block = slice(start, start + BLOCK)
            # not BLAS, whose threads would wait for busy cores each time
            total += np.einsum("kg,g->k", sums[:, block], times[block])
    return totals[:, :-1] / totals[:, -1:] + means


def interval(means: np.ndarray) -> Interval:
    """The 95% percentile interval of bootstrap means."""
    low, high = np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)
