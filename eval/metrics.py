"""What a judge is worth: log loss, accuracy, calibration and position bias, with intervals over conversations.

Everything here is numpy in the order of `LABELS`. A row is a conversation; its votes count as shares, so that a
conversation weighs one however many people voted. Exchanging a and b, of all rows or of some, leaves every figure as
it is: a label that ties for the most likely shares the verdict instead of the first winning.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from distill.records import LABELS

PERCENTILES = (2.5, 97.5)  # every interval here is a 95% interval
BLOCK = 1 << 16  # groups drawn at a time: 16 random bits each, without rejection, and counts that stay in cache
Groups = Sequence[str] | np.ndarray | pl.Series


def predict(logits_ab: np.ndarray, logits_ba: np.ndarray) -> np.ndarray:
    """A judge's probabilities: the softmax of the plain mean of its logits over the two orders.

    Takes twice [n, 3] in the conversation's own a and b, gives float64 [n, 3]. Raises `ValueError` where a logit is
    not finite, which a mean would pass on to every figure.
    """
    mean = (logits_ab.astype(np.float64) + logits_ba) / 2
    broken = np.flatnonzero(~np.isfinite(mean).all(axis=1))
    if broken.size:
        raise ValueError(
            f"{broken.size} of {len(mean)} conversations have logits that are not finite (row {broken[0]}: "
            f"{logits_ab[broken[0]].tolist()} and {logits_ba[broken[0]].tolist()}); score again in bf16 or fp32"
        )
    return np.asarray(softmax(mean, axis=1))


def log_loss_rows(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row against its vote shares, in nats: [n, 3] and [n, 3] -> float64 [n].

    Probabilities are clipped to [eps, 1 - eps] of float64, as scikit-learn's `log_loss` does, so a certain and wrong
    judge costs 36 nats a row, not infinity.
    """
    eps = np.finfo(np.float64).eps
    return -(shares(votes) * np.log(np.clip(probabilities, eps, 1 - eps, dtype=np.float64))).sum(axis=1)


def accuracy_rows(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The chance that someone who voted on the row agrees with the most likely label: [n, 3] and [n, 3] -> [n].

    With one vote a row this is plain accuracy. With several it is the share of votes for that label, so its mean is the
    accuracy over single voters, just as the log loss is theirs; a majority vote would hide how far people disagree.
    """
    top = _top(probabilities)
    return (top * shares(votes)).sum(axis=1) / top.sum(axis=1)


def reliability(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> pl.DataFrame:
    """Confidence against accuracy in equal-width bins ((m-1)/bins, m/bins] of the top label's probability.

    One row a bin that is not empty, from low to high: `count`, mean `confidence`, mean `accuracy`. Guo et al. 2017,
    "On Calibration of Modern Neural Networks", with `accuracy_rows` where votes are soft.
    """
    confidence = probabilities.max(axis=1)
    place = np.digitize(confidence, np.arange(1, bins) / bins, right=True)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    means = {
        name: np.bincount(place, weights=values, minlength=bins)[filled] / count[filled]
        for name, values in (("confidence", confidence), ("accuracy", accuracy_rows(probabilities, votes)))
    }
    return pl.DataFrame({"count": count[filled], **means})


def expected_calibration_error(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> float:
    """Mean distance between confidence and accuracy over the bins of `reliability`, weighted by their rows."""
    table = reliability(probabilities, votes, bins)
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float((gap * table["count"]).sum() / len(probabilities))


def flip_rate(logits_ab: np.ndarray, logits_ba: np.ndarray) -> float:
    """Share of conversations whose verdict depends on the order shown: no label is most likely in both orders."""
    return float(1 - (_top(logits_ab) & _top(logits_ba)).any(axis=1).mean())


def bootstrap_means(rows: np.ndarray, groups: Groups, draws: int, seed: int) -> np.ndarray:
    """Means of the columns of `rows` ([n] or [n, k]) under resampling of whole groups: float64 [draws, k].

    Conversations with the same first prompt are not independent, so groups are drawn with replacement and a draw's
    mean is the sum over its rows divided by their number (cluster bootstrap: Davison and Hinkley 1997, "Bootstrap
    Methods and their Application", 3.8); with one row a group it is the plain bootstrap. All columns see the same
    draws, whatever the order of the rows. The draws are exact multinomial counts, made block by block: memory does
    not grow with `draws`. Raises `ValueError` for a single group, which says nothing about other prompts.
    """
    columns = rows.reshape(len(rows), -1).astype(np.float64)
    assert len(groups) == len(rows), f"{len(groups)} groups for {len(rows)} rows"
    members = pl.Series(groups).rank("dense").to_numpy() - 1
    sums = np.stack([np.bincount(members, weights=column) for column in (*columns.T, np.ones(len(rows)))])
    count = sums.shape[1]
    if count < 2:
        raise ValueError(f"all {len(rows)} conversations share one group: an interval needs at least two prompts")
    blocks = [sums[:, start : start + BLOCK].copy() for start in range(0, count, BLOCK)]
    odds = [block.shape[1] / count for block in blocks]
    rng = np.random.default_rng(seed)
    totals = np.zeros((draws, len(sums)))
    for total in totals:
        for block, drawn in zip(blocks, rng.multinomial(count, odds), strict=True):
            picks = rng.integers(block.shape[1], size=drawn, dtype=np.uint16)
            times = np.bincount(picks, minlength=block.shape[1]).astype(np.float64)
            total += np.einsum("kg,g->k", block, times)  # not BLAS, whose threads would wait for busy cores each time
    return totals[:, :-1] / totals[:, -1:]


def interval(means: np.ndarray) -> list[float]:
    """The 95% percentile interval of bootstrap means, as [low, high]."""
    return [float(bound) for bound in np.percentile(means, PERCENTILES)]


def paired_difference(losses: np.ndarray, other: np.ndarray, groups: Groups, draws: int, seed: int) -> dict[str, Any]:
    """How much higher `losses` is than `other` on the same rows, both from the same draws.

    Gives {"difference": mean, "ci": [low, high]}; above zero where `other` is the better judge. Because both see the
    same conversations, this is far narrower than two separate intervals suggest.
    """
    assert losses.shape == other.shape, f"not the same rows: {losses.shape} and {other.shape}"
    gap = losses - other
    return {"difference": float(gap.mean()), "ci": interval(bootstrap_means(gap, groups, draws, seed))}


def summarise(
    logits_ab: np.ndarray, logits_ba: np.ndarray, votes: np.ndarray, groups: Groups, *, draws: int, bins: int, seed: int
) -> dict[str, Any]:
    """One judge's figures: log loss in nats with its interval, accuracy, ECE and flip rate as shares of one."""
    probabilities = predict(logits_ab, logits_ba)
    losses = log_loss_rows(probabilities, votes)
    return {
        "log_loss": float(losses.mean()),
        "log_loss_ci": interval(bootstrap_means(losses, groups, draws, seed)),
        "accuracy": float(accuracy_rows(probabilities, votes).mean()),
        "ece": expected_calibration_error(probabilities, votes, bins),
        "flip_rate": flip_rate(logits_ab, logits_ba),
    }


def shares(votes: np.ndarray) -> np.ndarray:
    """Vote counts [n, 3] as shares that sum to one in each row, float64."""
    assert votes.ndim == 2 and votes.shape[1] == len(LABELS), f"votes have shape {votes.shape}"
    total = votes.sum(axis=1, keepdims=True, dtype=np.float64)
    assert (total > 0).all() and (votes >= 0).all(), "a row without votes, or with negative ones"
    return votes / total


def _top(scores: np.ndarray) -> np.ndarray:
    """Which labels are most likely: bool [n, 3], more than one in a row where they tie."""
    return scores == scores.max(axis=1, keepdims=True)
