"""How far a judge's confidence lies from how often people agree with it, in bins of confidence.

The expected calibration error (ECE) has no interval: it is a sum of absolute values, which chance biases upwards. Of
two judges much the same bias leaves the difference, which `calibration_error_rows` tell.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from core.records import LABELS
from eval.metrics import accuracy_rows, shares

BINS = 15  # as Guo et al. have


def reliability(probabilities: np.ndarray, votes: np.ndarray, bins: int, equal_mass: bool = False) -> pl.DataFrame:
    """Confidence against accuracy in bins of the top label's probability, of equal width ((m-1)/bins, m/bins] or mass.

    One row a bin that is not empty, from low to high: `count`, mean `confidence`, mean `accuracy`. Guo et al. 2017,
    "On Calibration of Modern Neural Networks", with `accuracy_rows` where votes are soft; bins of equal mass hold one
    number of rows each (Nixon et al. 2019, "Measuring Calibration in Deep Learning"), but never part equal values.
    """
    confidence = probabilities.max(axis=1)
    columns = {"confidence": confidence, "accuracy": accuracy_rows(probabilities, votes)}
    return _binned(confidence, bins, equal_mass, columns)


def reliability_by_label(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> pl.DataFrame:
    """For each label what was predicted against what was voted, in bins of equal mass of its probability.

    `label`, `count`, mean `predicted` probability and mean `observed` vote share. Equal mass, because ties are seldom
    given more than half: equal widths would leave most of their bins empty.
    """
    tables = []
    labels = LABELS[: votes.shape[1]]
    for label, predicted, observed in zip(labels, probabilities.T, shares(votes).T, strict=True):
        table = _binned(predicted, bins, True, {"predicted": predicted, "observed": observed})
        tables.append(table.select(pl.lit(label).alias("label"), pl.all()))
    return pl.concat(tables)


def expected_calibration_error(
    probabilities: np.ndarray, votes: np.ndarray, bins: int, equal_mass: bool = False
) -> float:
    """Mean distance between confidence and accuracy over the bins of `reliability`, weighted by their rows."""
    return float(calibration_error_rows(probabilities, votes, bins, equal_mass).mean())


def calibration_error_rows(
    probabilities: np.ndarray, votes: np.ndarray, bins: int, equal_mass: bool = False
) -> np.ndarray:
    """Rows [n] whose mean is the expected calibration error: confidence less accuracy, signed as the whole bin is.

    Like the rows of the AUC they are for intervals without binning anew in each draw, as if bins and signs were fixed.
    Resampling the error itself would add the noise of each bin once more, always upwards. The measured error has that
    bias once, and so has that of a judge beside it, so that their difference is free of it where they are calibrated
    alike, and too small where they are not. The interval of the difference errs to the wide side: a bin near zero
    varies less than its rows (`tests/eval/test_fidelity.py` measures it).
    """
    confidence = probabilities.max(axis=1)
    gap, place = confidence - accuracy_rows(probabilities, votes), _places(confidence, bins, equal_mass)
    return np.asarray(gap * np.sign(np.bincount(place, weights=gap, minlength=bins))[place])


def calibration_errors(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> dict[str, float]:
    """Fields of a result: `ece` and `adaptive_ece`, over bins of equal width and of equal mass."""
    kinds = {"ece": False, "adaptive_ece": True}
    return {name: expected_calibration_error(probabilities, votes, bins, mass) for name, mass in kinds.items()}


def _binned(values: np.ndarray, bins: int, equal_mass: bool, columns: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """`count` and the mean of each column in bins of `values`, shares of one; empty bins are left out."""
    place = _places(values, bins, equal_mass)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    means = {
        name: np.bincount(place, weights=column, minlength=bins)[filled] / count[filled]
        for name, column in columns.items()
    }
    return pl.DataFrame({"count": count[filled], **means})


def _places(values: np.ndarray, bins: int, equal_mass: bool) -> np.ndarray:
    """Which of `bins` each of the `values`, shares of one, lies in: of equal width, or of equal mass."""
    inner = np.arange(1, bins) / bins
    edges = np.quantile(values, inner, method="inverted_cdf") if equal_mass else inner
    return np.asarray(np.digitize(values, edges, right=True))
