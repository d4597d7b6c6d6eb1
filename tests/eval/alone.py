"""What one judge is worth, without any other beside it."""

from typing import Any

import numpy as np

from eval.bootstrap import Resampling
from eval.intervals import Groups
from eval.means import Means
from eval.metrics import FIGURES, figure_rows, predict
from eval.reliability import calibration_errors


def figures_alone(
    ab: np.ndarray, ba: np.ndarray, votes: np.ndarray, groups: Groups, resampling: Resampling, bins: int
) -> dict[str, Any]:
    """Each of `FIGURES` with its interval as name_ci, and the calibration errors; None where nothing is measured."""
    means = Means(figure_rows(ab, ba, votes), groups, resampling)
    return {**means.figures({name: name for name in FIGURES}), **calibration_errors(predict(ab, ba), votes, bins)}
