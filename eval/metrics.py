"""What a judge is worth: log loss, accuracy, calibration and position bias, with intervals over conversations.

Everything here is numpy in the order of `LABELS`. A row is a conversation; its votes count as shares, so that a
conversation weighs one however many people voted, and a figure is what to expect of one voter drawn from each row.
Exchanging a and b, of all rows or of some, leaves every figure as it is: a label that ties for the most likely shares
the verdict instead of the first winning. What is a mean over rows is given row by row, and `bootstrap_means` makes
intervals of it. ECE has none: it is a sum of absolute values, which resampling biases upwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from distill.errors import UserError
from distill.records import LABELS

PERCENTILES = (2.5, 97.5)  # every interval here is a 95% interval
BLOCK = 1 << 16  # groups drawn at a time: 16 random bits each, without rejection, and counts that stay in cache
EPS = np.finfo(np.float64).eps
FIGURES = ("log_loss", "brier", "accuracy", "auc", "flip_rate", "kl_to_teacher")  # those that are means over rows
Groups = Sequence[str] | np.ndarray | pl.Series


def predict(logits_ab: np.ndarray, logits_ba: np.ndarray) -> np.ndarray:
    """A judge's probabilities: the softmax of the plain mean of its logits over the two orders.

    Takes twice [n, 3] in the conversation's own a and b, gives float64 [n, 3]. Raises `UserError` where a logit is
    not finite, which a mean would pass on to every figure.
    """
    mean = (logits_ab.astype(np.float64) + logits_ba) / 2
    broken = np.flatnonzero(~np.isfinite(mean).all(axis=1))
    if broken.size:
        raise UserError(
            f"{broken.size} of {len(mean)} conversations have logits that are not finite (row {broken[0]}: "
            f"{logits_ab[broken[0]].tolist()} and {logits_ba[broken[0]].tolist()}); score again in bf16 or fp32"
        )
    return np.asarray(softmax(mean, axis=1))


def log_loss_rows(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Cross-entropy of each row against its vote shares, in nats: [n, 3] and [n, 3] -> float64 [n].

    Probabilities are clipped to [eps, 1 - eps] of float64, as scikit-learn's `log_loss` does, so a certain and wrong
    judge costs 36 nats a row, not infinity.
    """
    return -(shares(votes) * _log(probabilities)).sum(axis=1)


def kl_rows(teacher: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """KL(teacher || judge) of each row, in nats: probabilities [n, 3] of both -> [n], clipped as the log loss."""
    return (teacher * (_log(teacher) - _log(probabilities))).sum(axis=1)


def brier_rows(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Squared distance to the one-hot vote of someone who voted on the row, summed over labels: [n, 3] twice -> [n].

    Between 0 and 2 (Brier 1950). Like the log loss it is the mean over single voters, not the distance to their
    shares; the two differ by how far the voters disagree, which no judge can change.
    """
    return (probabilities**2).sum(axis=1) - 2 * (probabilities * shares(votes)).sum(axis=1) + 1


def accuracy_rows(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """The chance that someone who voted on the row agrees with the most likely label: [n, 3] and [n, 3] -> [n].

    With one vote a row this is plain accuracy. With several it is the share of votes for that label, so its mean is the
    accuracy over single voters, just as the log loss is theirs; a majority vote would hide how far people disagree.
    """
    return (_verdict(probabilities) * shares(votes)).sum(axis=1)


def auc_rows(probabilities: np.ndarray, votes: np.ndarray) -> np.ndarray | None:
    """Rows [n] whose mean is the area under the ROC curve of p_a - p_b as a test for a winning, ties left out.

    Each vote for a or b counts with its share, and once from each side, a mirrored to b: the area would otherwise
    depend on which response is called a. A row holds the area and its own influence on it, so that the bootstrap of
    the mean is that of the area to first order (DeLong et al. 1988, for clusters Obuchowski 1997), without sorting in
    each draw. None where nobody voted for a or b.
    """
    share = shares(votes)[:, :2]
    if not (total := share.sum()):
        return None
    margin = probabilities[:, 0] - probabilities[:, 1]
    levels, place = np.unique(np.concatenate([margin, -margin]), return_inverse=True)
    losing = np.bincount(place, weights=np.concatenate([share[:, 1], share[:, 0]]), minlength=len(levels))
    below = ((np.cumsum(losing) - losing / 2) / total)[place].reshape(2, -1)  # share of losers under each margin
    won = (share * below.T).sum(axis=1)
    area = won.sum() / total
    return np.asarray(area + 2 * (won - area * share.sum(axis=1)) * (len(share) / total))


def flip_rows(logits_ab: np.ndarray, logits_ba: np.ndarray) -> np.ndarray:
    """1 where the verdict depends on the order shown, no label being most likely in both, else 0: float64 [n]."""
    return 1.0 - (_top(logits_ab) & _top(logits_ba)).any(axis=1)


def flip_rate(logits_ab: np.ndarray, logits_ba: np.ndarray) -> float:
    """Share of conversations whose verdict depends on the order shown."""
    return float(flip_rows(logits_ab, logits_ba).mean())


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
    for label, predicted, observed in zip(LABELS, probabilities.T, shares(votes).T, strict=True):
        table = _binned(predicted, bins, True, {"predicted": predicted, "observed": observed})
        tables.append(table.select(pl.lit(label).alias("label"), pl.all()))
    return pl.concat(tables)


def expected_calibration_error(
    probabilities: np.ndarray, votes: np.ndarray, bins: int, equal_mass: bool = False
) -> float:
    """Mean distance between confidence and accuracy over the bins of `reliability`, weighted by their rows."""
    table = reliability(probabilities, votes, bins, equal_mass)
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float((gap * table["count"]).sum() / len(probabilities))


def repeated(votes: np.ndarray) -> np.ndarray:
    """Which rows of [n, 3] hold two votes or more, as whole counts: bool [n]. They alone tell how far people agree."""
    return np.asarray((votes.sum(axis=1) >= 2) & (votes == np.round(votes)).all(axis=1))


def human_rows(votes: np.ndarray) -> dict[str, np.ndarray]:
    """What people themselves reach on rows with repeated votes: float64 [n] by name, from counts [n, 3].

    `agreement`: the chance that another voter of the row agrees with one, sum n_l (n_l - 1) / (n (n - 1)), the unbiased
    ceiling of a judge that answers as one person would. `majority`: that the majority of the others agrees with one
    (ties shared), the ceiling of a judge that knows what most people think. `entropy`: the log loss of a judge that
    knows each row's true shares, as the entropy of the measured ones plus (labels seen - 1) / 2n (Miller 1955); with
    few votes that is still too low, so that a floor made of it is one that holds.
    """
    assert repeated(votes).all(), "a row with fewer than two votes, or with parts of votes"
    n, share = votes.sum(axis=1), shares(votes)
    others = votes[:, None, :] - np.eye(len(LABELS))  # [n, one voter's label, how many of the others chose each]
    entropy = -(share * _log(share)).sum(axis=1)
    return {
        "agreement": (share * (votes - 1)).sum(axis=1) / (n - 1),
        "majority": (share * np.stack([_verdict(others[:, i])[:, i] for i in range(len(LABELS))], axis=1)).sum(axis=1),
        "entropy": entropy + ((votes > 0).sum(axis=1) - 1) / (2 * n),
    }


def number_groups(groups: Groups) -> np.ndarray:
    """Groups as numbers 0, 1, ... in the order of their names, whatever the order of the rows: int64 [n].

    Raises `UserError` for a single group, which says nothing about other prompts.
    """
    members = pl.Series(groups).rank("dense").cast(pl.Int64).to_numpy() - 1
    if members.max(initial=0) < 1:
        raise UserError(f"all {len(members)} conversations share one group: an interval needs at least two prompts")
    return members


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


def interval(means: np.ndarray) -> list[float]:
    """The 95% percentile interval of bootstrap means, as [low, high]."""
    return [float(bound) for bound in np.percentile(means, PERCENTILES)]


def difference(gap: float, means: np.ndarray) -> dict[str, Any]:
    """A measured `gap` between two judges and its bootstrap `means` [draws] as the figures of a paired comparison.

    {"difference": gap, "ci": [low, high], "p": two-sided p-value, "beats": low > 0}. p is twice the smaller of the
    shares of draws at or below and at or above zero, one more draw on either side counted (Davison and Hinkley 1997,
    4.2), so that it is never zero, and at most one.
    """
    tails = [(1 + int(side.sum())) / (1 + len(means)) for side in (means <= 0, means >= 0)]
    low, high = interval(means)
    return {"difference": float(gap), "ci": [low, high], "p": min(1.0, 2 * min(tails)), "beats": low > 0}


def paired_difference(losses: np.ndarray, other: np.ndarray, groups: Groups, draws: int, seed: int) -> dict[str, Any]:
    """How much higher `losses` is than `other` on the same rows, both from the same draws, as `difference` gives it.

    Above zero where `other` is the better judge. Because both see the same conversations, this is far narrower than
    two separate intervals suggest.
    """
    assert losses.shape == other.shape, f"not the same rows: {losses.shape} and {other.shape}"
    gap = losses - other
    return difference(gap.mean(), bootstrap_means(gap, groups, draws, seed)[:, 0])


def figure_rows(
    logits_ab: np.ndarray, logits_ba: np.ndarray, votes: np.ndarray, teacher: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """What each row adds to those of `FIGURES` that can be had: float64 [n] by name.

    `auc` needs a vote for a or b, `kl_to_teacher` the `teacher`'s probabilities [n, 3].
    """
    probabilities = predict(logits_ab, logits_ba)
    rows = {
        "log_loss": log_loss_rows(probabilities, votes),
        "brier": brier_rows(probabilities, votes),
        "accuracy": accuracy_rows(probabilities, votes),
        "auc": auc_rows(probabilities, votes),
        "flip_rate": flip_rows(logits_ab, logits_ba),
        "kl_to_teacher": None if teacher is None else kl_rows(teacher, probabilities),
    }
    return {name: row for name, row in rows.items() if row is not None}


def estimates(
    means: Mapping[str, float], drawn: Mapping[str, np.ndarray], figures: Sequence[str] = FIGURES
) -> dict[str, Any]:
    """{figure: mean, figure_ci: interval} from means and their bootstrap draws, None for figures that have none."""
    found: dict[str, Any] = {}
    for figure in figures:
        there = figure in means
        found |= {figure: means[figure] if there else None, f"{figure}_ci": interval(drawn[figure]) if there else None}
    return found


def calibration(probabilities: np.ndarray, votes: np.ndarray, bins: int) -> dict[str, float]:
    """{"ece", "adaptive_ece"}: the expected calibration error over bins of equal width and of equal mass."""
    kinds = {"ece": False, "adaptive_ece": True}
    return {name: expected_calibration_error(probabilities, votes, bins, mass) for name, mass in kinds.items()}


def summarise(
    logits_ab: np.ndarray, logits_ba: np.ndarray, votes: np.ndarray, groups: Groups, *, draws: int, bins: int, seed: int
) -> dict[str, Any]:
    """One judge's figures: each of `FIGURES` with its interval as name_ci, and `calibration`.

    Log loss and KL in nats, the others as shares of one; None where there is nothing to measure on.
    """
    rows = figure_rows(logits_ab, logits_ba, votes)
    drawn = bootstrap_means(np.stack([*rows.values()], axis=1), groups, draws, seed)
    means = {name: float(row.mean()) for name, row in rows.items()}
    return {
        **estimates(means, dict(zip(rows, drawn.T, strict=True))),
        **calibration(predict(logits_ab, logits_ba), votes, bins),
    }


def shares(votes: np.ndarray) -> np.ndarray:
    """Vote counts [n, 3] as shares that sum to one in each row, float64."""
    assert votes.ndim == 2 and votes.shape[1] == len(LABELS), f"votes have shape {votes.shape}"
    total = votes.sum(axis=1, keepdims=True, dtype=np.float64)
    assert (total > 0).all() and (votes >= 0).all(), "a row without votes, or with negative ones"
    return votes / total


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(np.log(np.clip(probabilities, EPS, 1 - EPS, dtype=np.float64)))


def _top(scores: np.ndarray) -> np.ndarray:
    """Which labels are most likely: bool [n, 3], more than one in a row where they tie."""
    return scores == scores.max(axis=1, keepdims=True)


def _verdict(scores: np.ndarray) -> np.ndarray:
    """The most likely label as shares [n, 3]: one, or equal parts where they tie."""
    top = _top(scores)
    return np.asarray(top / top.sum(axis=1, keepdims=True))


def _binned(values: np.ndarray, bins: int, equal_mass: bool, columns: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """`count` and the mean of each column in bins of `values`, shares of one; empty bins are left out."""
    inner = np.arange(1, bins) / bins
    edges = np.quantile(values, inner, method="inverted_cdf") if equal_mass else inner
    place = np.digitize(values, edges, right=True)
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    means = {
        name: np.bincount(place, weights=column, minlength=bins)[filled] / count[filled]
        for name, column in columns.items()
    }
    return pl.DataFrame({"count": count[filled], **means})
