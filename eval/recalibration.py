"""Recalibrating a judge: a few parameters on its logits, fitted on votes it was not trained on.

A distilled judge repeats its teacher's confidence, which people need not share, and quantisation changes it once more.
Both orders get the same map, in which a and b have the same part: it commutes with swapping and moves no verdict
between them. It is affine, so that the mean of recalibrated logits is the recalibrated mean.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax

from core.errors import UserError
from core.json_files import write_json
from core.records import LABELS
from eval.metrics import shares

FILE = "calibration.json"
Kind = Literal["none", "temperature", "vector"]
# what one unit of each parameter adds to (scale, shift) of a, b and tie
PARAMETERS: dict[Kind, list[tuple[list[float], list[float]]]] = {
    "none": [],
    "temperature": [([1, 1, 1], [0, 0, 0])],
    "vector": [([1, 1, 0], [0, 0, 0]), ([0, 0, 1], [0, 0, 0]), ([0, 0, 0], [0, 0, 1])],
}
LARGEST_SCALE = 10.0  # where a judge is never wrong, the best scale is infinite, and the first mistake would be, too
PRECISION = {"ftol": 1e-14, "gtol": 1e-9}


@dataclass(frozen=True)
class Recalibration:
    """logit -> `scale` * (logit - m) + `shift` + m, m the mean of a row's three logits, in the order of `LABELS`.

    About m, because a constant added to all three says nothing: logits of the same probabilities stay logits of the
    same probabilities, and the identity changes no bit. Of logits [..., 2], without ties, m is the mean of those two.
    Raises `UserError` where a and b differ.
    """

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if len(values) != len(LABELS) or not np.isfinite(values).all() or values[0] != values[1]:
                raise UserError(
                    f"{name}={values}: expected three finite numbers, equal for {LABELS[0]} and {LABELS[1]}"
                )

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Logits [..., labels] in either order -> float64 [..., labels]."""
        logits, labels = logits.astype(np.float64), logits.shape[-1]
        scale, shift = np.array(self.scale)[:labels], np.array(self.shift)[:labels]
        return np.asarray(logits + (scale - 1) * _centred(logits) + shift)


IDENTITY = Recalibration((1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def fit_recalibration(logits: np.ndarray, votes: np.ndarray, kind: Kind) -> Recalibration:
    """The recalibration of least log loss on `votes` [n, labels], given `logits` like them, a judge's mean over orders.

    `temperature`: one scale, 1 / T; `vector`: one of a and b, one of tie, and a shift of tie (both Guo et al. 2017, "On
    Calibration of Modern Neural Networks", the second with a and b tied). Votes count as shares. Convex, from the
    identity downhill, so it never fits worse than no recalibration; scales stay within 0 and `LARGEST_SCALE`. What
    it is worth shows only on other rows than these. Without ties their scale and shift stay as they are, so that
    `vector` is `temperature`. Raises `UserError` where there are no rows.
    """
    if not len(logits):
        raise UserError(f"recalibration={kind!r}: there are no rows with votes to fit it on; choose 'none'")
    if not PARAMETERS[kind]:
        return IDENTITY
    scales, shifts = np.array(PARAMETERS[kind], dtype=np.float64).swapaxes(0, 1)  # each [parameters, 3]
    labels = logits.shape[1]
    units = scales[:, None, :labels] * _centred(logits.astype(np.float64)) + shifts[:, None, :labels]
    share = shares(votes)

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean log loss and its gradient; the logits are linear in the parameters."""
        log_p = log_softmax(np.tensordot(parameters, units, 1), axis=1)
        surplus = np.exp(log_p) - share
        return -float((share * log_p).sum() / len(share)), np.einsum("pnl,nl->p", units, surplus) / len(share)

    is_scale = scales.any(axis=1)
    bounds = [(0, LARGEST_SCALE) if scaling else (None, None) for scaling in is_scale]
    best = minimize(loss, is_scale.astype(float), jac=True, method="L-BFGS-B", bounds=bounds, options=PRECISION)
    return Recalibration(tuple((best.x @ scales).tolist()), tuple((best.x @ shifts).tolist()))


def write_recalibration(folder: Path, recalibration: Recalibration, fitted_on: Mapping[str, Any]) -> None:
    """Write `folder`/calibration.json; `fitted_on` says on which rows, and by what kind of fit."""
    write_json(folder / FILE, {**asdict(recalibration), "fitted_on": dict(fitted_on)})


def read_recalibration(folder: Path) -> Recalibration:
    """The recalibration beside a model, the identity where there is none.

    Raises `UserError` naming a file that does not hold one.
    """
    path = folder / FILE
    if not path.exists():
        return IDENTITY
    try:
        found = json.loads(path.read_text())
        return Recalibration(tuple(found["scale"]), tuple(found["shift"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no recalibration ({error!r}): delete it to go without, or export again"
        ) from error


def _centred(logits: np.ndarray) -> np.ndarray:
    return np.asarray(logits - logits.mean(axis=-1, keepdims=True))
