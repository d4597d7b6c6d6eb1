"""A conversation's result from its logits: probabilities, verdict, and whether the order decided."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from scipy.special import softmax

from core.labels import Labels, among, with_tie
from core.prompts import Rendered
from core.records import LABELS, Order
from deploy.serving.schemas import Probabilities, Result, Unjudged, Verdict
from eval.conformal import set_labels, sets_of
from eval.metrics import flip_rate


def result(
    id: str,
    prompt: Rendered,
    orders: Sequence[Order],
    logits: np.ndarray,
    recalibrate: Callable[[np.ndarray], np.ndarray],
    labels: Labels = LABELS,
    least: float | None = None,
) -> Result:
    """From `logits` [orders, 3], in the conversation's own a and b; `prompt` is that of the first order.

    Of a judge whose `labels` are two, a tie has probability 0. `least`: of a label in a set; None: no set is given.
    """
    if not np.isfinite(logits).all():
        return Unjudged(id=id, error="its logits are not finite: serve the judge with scorers.exported.dtype=fp32")
    # Recalibration is affine: the mean of recalibrated logits is the recalibrated mean.
    recalibrated = recalibrate(among(logits, labels))
    mean = recalibrated.mean(axis=0)
    return Verdict(
        id=id,
        probabilities=_probabilities(mean),
        verdict=_verdict(mean),
        by_order={order: _probabilities(each) for order, each in zip(orders, recalibrated, strict=True)},
        flips=bool(flip_rate(recalibrated[:1], recalibrated[1:])) if len(orders) > 1 else None,
        set=None if least is None else set_labels(sets_of(softmax(mean)[None], least)[0], labels),
        prompt_tokens=len(prompt.ids),
        truncated=prompt.truncated,
    )


def _probabilities(logits: np.ndarray) -> Probabilities:
    return Probabilities(**dict(zip(LABELS, with_tie(softmax(logits), 0).tolist(), strict=True)))


def _verdict(logits: np.ndarray) -> Literal["a", "b", "tie"]:
    a, b, tie = with_tie(logits, -np.inf)
    if max(a, b) <= tie or a == b:
        return "tie"
    return "a" if a > b else "b"
