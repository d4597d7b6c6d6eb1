"""What a judge is worth: log loss, accuracy, calibration and position bias, with intervals over conversations.

Everything here is numpy in the order of `LABELS`. A row is a conversation; its votes count as shares, so that a
conversation weighs one however many people voted, and a figure is what to expect of one voter drawn from each row.
Exchanging a and b, of all rows or of some, leaves every figure as it is: a label that ties for the most likely shares
the verdict instead of the first winning. What is a mean over rows is given row by row, and `Means` makes intervals of
it. ECE has none: it is a sum of absolute values, which chance biases upwards. Of two judges much the same bias leaves
the difference, which `calibration_rows` tell.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from scipy.special import softmax

from core.errors import UserError
from core.records import LABELS
from eval.inference import FEW, Drawn, Estimate, Groups, Jackknife, effective_number

LEVEL = 0.05  # every interval here is a 95% interval
BLOCK = 1 << 16  # groups drawn at a time: 16 random bits each, without rejection, and counts that stay in cache
EPS = np.finfo(np.float64).eps
FIGURES = ("log_loss", "brier", "accuracy", "auc", "flip_rate", "kl_to_teacher")  # those that are means over rows
SHARES = ("accuracy", "auc", "flip_rate", "agreement", "majority", "largest_share")  # those of one
BOOTSTRAP, JACKKNIFE = "bootstrap", "jackknife"
METHODS = {BOOTSTRAP: "bootstrap of prompts", JACKKNIFE: "jackknife, for few prompts"}  # of intervals, in words


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
    return float(calibration_rows(probabilities, votes, bins, equal_mass).mean())


def calibration_rows(probabilities: np.ndarray, votes: np.ndarray, bins: int, equal_mass: bool = False) -> np.ndarray:
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


def repeated(votes: np.ndarray) -> np.ndarray:
    """Which rows of [n, 3] hold two votes or more, as whole counts: bool [n]. They alone tell how far people agree."""
    return np.asarray((votes.sum(axis=1) >= 2) & (votes == np.round(votes)).all(axis=1))


def human_rows(votes: np.ndarray) -> dict[str, np.ndarray]:
    """How far people agree, and what that leaves to a judge: float64 [n] by name, from repeated votes, counts [n, 3].

    Two are no bounds; with few votes a judge that knows the law of the votes passes both:
    - `agreement`: the chance that two people who voted on the row agree, sum n_l (n_l - 1) / (n (n - 1)), unbiased
    - `majority`: that one agrees with the majority of the others, ties shared; noisy where these are few

    Two are:
    - `largest_share` of votes, above the accuracy of any judge: on these votes, as it takes a verdict that knows them,
      and in expectation on others, as the largest of noisy shares lies above the largest of the true ones
    - `entropy` of the shares, plus (labels seen - 1) / 2n (Miller 1955): an estimate of the law's entropy, below which
      no judge's expected log loss lies. It is too low in expectation whatever the law, the more so the fewer the votes,
      so that the floor holds but for the luck of the sample, which its interval tells
    """
    assert repeated(votes).all(), "a row with fewer than two votes, or with parts of votes"
    n, share = votes.sum(axis=1), shares(votes)
    others = votes[:, None, :] - np.eye(len(LABELS))  # [n, one voter's label, how many of the others chose each]
    entropy = -(share * _log(share)).sum(axis=1)
    return {
        "agreement": (share * (votes - 1)).sum(axis=1) / (n - 1),
        "majority": (share * np.stack([_verdict(others[:, i])[:, i] for i in range(len(LABELS))], axis=1)).sum(axis=1),
        "largest_share": share.max(axis=1),
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
    return [float(bound) for bound in np.quantile(means, (LEVEL / 2, 1 - LEVEL / 2))]


class Means:
    """Means of columns of rows, {key: float64 [n]}, and how sure they and their differences are, prompts being drawn.

    Of rows that weigh as much as `FEW` independent prompts they are bootstrapped, all on the same draws; of fewer, for
    which percentiles are too narrow, errors are the jackknife's and intervals Student's t. `method` says which. Raises
    `UserError` for a single group.
    """

    def __init__(self, columns: Mapping[Any, np.ndarray], groups: Groups, draws: int, seed: int):
        members = number_groups(groups)
        self.columns = columns
        self.prompts = effective_number(np.bincount(members))
        self.method = JACKKNIFE if self.prompts < FEW else BOOTSTRAP
        if self.method == JACKKNIFE:
            self.jackknife = Jackknife(members)
        else:
            drawn = bootstrap_means(np.stack([*columns.values()]).T, members, draws, seed)
            self.drawn = dict(zip(columns, drawn.T, strict=True))

    def __contains__(self, key: Hashable) -> bool:
        return key in self.columns

    def mean(self, key: Hashable) -> Estimate:
        """The mean of one column."""
        if self.method == JACKKNIFE:
            return self.jackknife.whole(self.columns[key])
        return self._drawn(self.columns[key].mean(), self.drawn[key])

    def difference(self, key: Hashable, other: Hashable) -> Estimate:
        """The mean of one column less that of another, paired."""
        if self.method == JACKKNIFE:
            return self.jackknife.whole(self.columns[key] - self.columns[other])
        return self._drawn(self.columns[key].mean() - self.columns[other].mean(), self.drawn[key] - self.drawn[other])

    def figures(self, keys: Mapping[str, Hashable]) -> dict[str, Any]:
        """{figure: mean, figure_ci: its interval} of {figure: key}, both None for a key that is not there.

        No figure is below zero; those of `SHARES` are not above one either.
        """
        found: dict[str, Any] = {}
        for figure, key in keys.items():
            estimate = self.mean(key) if key in self else None
            found |= {figure: estimate and estimate.value, f"{figure}_ci": estimate and _bounds(estimate, figure)}
        return found

    def _drawn(self, value: float, means: np.ndarray) -> Drawn:
        count = len(next(iter(self.columns.values())))
        return Drawn(float(value), float(means.std(ddof=1)), self.prompts, count, means)


def _bounds(estimate: Estimate, figure: str) -> list[float]:
    low, high = estimate.share_interval(LEVEL) if figure in SHARES else estimate.interval(LEVEL)
    return [max(0.0, low), high]


def difference(estimate: Estimate) -> dict[str, Any]:
    """A difference between two judges as the figures of a paired comparison.

    {"difference", "ci": [low, high], "p": two-sided p-value, "beats": low > 0}.
    """
    low, high = estimate.interval(LEVEL)
    return {"difference": estimate.value, "ci": [low, high], "p": estimate.p, "beats": low > 0}


def paired_difference(losses: np.ndarray, other: np.ndarray, groups: Groups, draws: int, seed: int) -> dict[str, Any]:
    """How much higher `losses` is than `other` on the same rows, as `difference` gives it.

    Above zero where `other` is the better judge. Because both see the same conversations, this is far narrower than
    two separate intervals suggest.
    """
    assert losses.shape == other.shape, f"not the same rows: {losses.shape} and {other.shape}"
    return difference(Means({"gap": losses - other}, groups, draws, seed).mean("gap"))


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
    means = Means(figure_rows(logits_ab, logits_ba, votes), groups, draws, seed)
    return {
        **means.figures({figure: figure for figure in FIGURES}),
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
