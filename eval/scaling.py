"""What more data would buy: a power law through the log losses of runs that differ in how many conversations they saw.

    loss(n) = floor + gain * n^-exponent

as for language models (Kaplan et al. 2020, arXiv 2001.08361; with a floor: Hoffmann et al. 2022, arXiv 2203.15556).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar, nnls

from eval.intervals import LEVEL, Interval

FEWEST = 3  # sizes: the law has three parameters
DRAWS = 200
TINY = 1e-9
EXPONENTS = (0.02, 2.0)
NEAR = 1e-3  # to a bound of these: the search ends close to it


@dataclass(frozen=True)
class Run:
    """A finished run: training conversations, held-out log loss in nats and its standard error."""

    conversations: int
    log_loss: float
    error: float


@dataclass(frozen=True)
class Law:
    """The log loss by training conversations."""

    floor: float
    gain: float
    exponent: float

    def at(self, conversations: float) -> float:
        return float(self.floor + self.gain * conversations**-self.exponent)


@dataclass(frozen=True)
class Forecast:
    """The log loss that the law gives for so many `conversations`, and by how many nats that is less than what it gives
    for as many as the largest run saw, measured or not; both with 95% intervals.
    """

    conversations: int
    log_loss: float
    log_loss_ci: Interval
    gain: float
    gain_ci: Interval


def fit(runs: Sequence[Run]) -> Law:
    """Least squares, each run by its error, with a floor and a gain of at least zero.

    For a given exponent floor and gain are linear; the exponent is searched for. Runs of one size are points of their
    own. Raises `ValueError` for fewer than three sizes.
    """
    if len({run.conversations for run in runs}) < FEWEST:
        raise ValueError(f"a law needs runs of {FEWEST} sizes")
    sizes = np.array([run.conversations for run in runs], float)
    losses = np.array([run.log_loss for run in runs])
    weights = np.array([1 / max(run.error, TINY) for run in runs])

    def solved(exponent: float) -> tuple[float, Law]:
        columns = np.stack([np.ones_like(sizes), (sizes / sizes.min()) ** -exponent], axis=1)
        (floor, gain), residual = nnls(columns * weights[:, None], losses * weights)
        return residual, Law(float(floor), float(gain * sizes.min() ** exponent), exponent)

    best = minimize_scalar(lambda exponent: solved(exponent)[0], bounds=EXPONENTS, method="bounded")
    return solved(float(best.x))[1]


def misfit(runs: Sequence[Run]) -> str | None:
    """Why the law through `runs` does not tell of more conversations, as the end of a sentence; None where it may.

    Its exponent lies at the end of what is searched, or chi-square says that the runs lie further from it than their
    errors allow. Runs that share their test rows share the luck of these, so that is rather told too seldom.
    """
    law = fit(runs)
    if law.gain > 0 and min(abs(law.exponent - bound) for bound in EXPONENTS) < NEAR:
        return f"its exponent lies at the end of what is searched, {law.exponent:.2f}"
    fitted = 1 if law.gain == 0 else 2 + (law.floor > 0)  # parameters that are not held by a bound
    freedom = len(runs) - fitted
    distance = sum(((run.log_loss - law.at(run.conversations)) / max(run.error, TINY)) ** 2 for run in runs)
    if freedom and stats.chi2.sf(distance, freedom) < LEVEL:
        return f"runs lie further from it than their errors allow, chi-square {distance:.1f}, df {freedom}"
    return None


def forecast(runs: Sequence[Run], sizes: Sequence[int], seed: int = 0) -> list[Forecast]:
    """The log loss at other `sizes`. The interval is of fits to losses that are drawn anew within their errors; as runs
    share their test rows, whose luck they share, it is rather too wide for a gain.
    """
    rng = np.random.default_rng(seed)
    largest = max(run.conversations for run in runs)
    laws = [
        fit([Run(run.conversations, run.log_loss + run.error * rng.standard_normal(), run.error) for run in runs])
        for _ in range(DRAWS)
    ]
    law = fit(runs)

    def interval(values: Sequence[float]) -> Interval:
        low, high = np.quantile(values, [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)

    return [
        Forecast(
            size,
            law.at(size),
            interval([drawn.at(size) for drawn in laws]),
            law.at(largest) - law.at(size),
            interval([drawn.at(largest) - drawn.at(size) for drawn in laws]),
        )
        for size in sizes
    ]
