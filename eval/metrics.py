"""What each conversation adds to a judge's figures: log loss, accuracy, position bias, and how far people agree.

Everything here is numpy in the order of `LABELS`, [n, 3], or [n, 2] where people could not vote for a tie
(`core/labels.py`). A row is a conversation; its votes count as shares, so that a
conversation weighs one however many people voted, and a figure is what to expect of one voter drawn from each row.
Exchanging a and b, of all rows or of some, leaves every figure as it is: a label that ties for the most likely shares
the verdict instead of the first winning. What is a mean over rows is given row by row, and `eval.means` makes intervals
of it.
"""

import numpy as np
from scipy.special import softmax

from core.errors import UserError
from core.records import LABELS

EPS = np.finfo(np.float64).eps
FIGURES = ("log_loss", "brier", "accuracy", "auc", "flip_rate", "kl_to_teacher")  # those that are means over rows


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


def win_rates(probabilities: np.ndarray) -> np.ndarray:
    """The win rate of a in each row, ties half: [n, labels] -> [n]; that of b is one less it."""
    return np.asarray((1 + probabilities[:, 0] - probabilities[:, 1]) / 2)


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


def repeated(votes: np.ndarray) -> np.ndarray:
    """Which rows of [n, 3] hold two votes or more, as whole counts: bool [n]. They alone tell how far people agree."""
    return np.asarray((votes.sum(axis=1) >= 2) & (votes == np.round(votes)).all(axis=1))


def human_rows(votes: np.ndarray) -> dict[str, np.ndarray]:
    """How far people agree, and what that leaves to a judge: float64 [n] by name, from repeated votes, counts [n, 3].

    Two are no bounds; with few votes a judge that knows the true distribution of the votes passes both:
    - `agreement`: the chance that two people who voted on the row agree, sum n_l (n_l - 1) / (n (n - 1)), unbiased
    - `majority`: that one agrees with the majority of the others, ties shared; noisy where these are few

    Two are:
    - `largest_share` of votes, above the accuracy of any judge: on these votes, as it takes a verdict that knows them,
      and in expectation on others, as the largest of noisy shares lies above the largest of the true ones
    - `entropy` of the shares, plus (labels seen - 1) / 2n (Miller 1955): an estimate of the true distribution's
      entropy, below which no judge's expected log loss lies. It is too low in expectation whatever that distribution,
      the more so the fewer the votes, so that the floor holds but for the luck of the sample, which its interval tells
    """
    assert repeated(votes).all(), "a row with fewer than two votes, or with fractions of votes"
    n, share = votes.sum(axis=1), shares(votes)
    labels = votes.shape[1]
    others = votes[:, None, :] - np.eye(labels)  # [n, one voter's label, how many of the others chose each]
    entropy = -(share * _log(share)).sum(axis=1)
    return {
        "agreement": (share * (votes - 1)).sum(axis=1) / (n - 1),
        "majority": (share * np.stack([_verdict(others[:, i])[:, i] for i in range(labels)], axis=1)).sum(axis=1),
        "largest_share": share.max(axis=1),
        "entropy": entropy + ((votes > 0).sum(axis=1) - 1) / (2 * n),
    }


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


def shares(votes: np.ndarray) -> np.ndarray:
    """Vote counts [n, 3] as shares that sum to one in each row, float64."""
    assert votes.ndim == 2 and votes.shape[1] in (2, len(LABELS)), f"votes have shape {votes.shape}"
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
