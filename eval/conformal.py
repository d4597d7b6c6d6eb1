"""Prediction sets: the labels that a judge cannot rule out, holding the vote as often as was asked.

Split conformal prediction: on rows that the judge was not trained on, find the probability that a voted label falls
short of no more often than is allowed; a set is all labels of at least that probability. No assumption about the judge
is made, only that new prompts are drawn like those of the fit. A judge that guesses gets large sets, and the whole set
{a, b, tie} is its way to abstain.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from core.errors import UserError
from core.json_files import write_json
from core.labels import Labels
from eval.intervals import Groups, number_groups
from eval.metrics import shares

FILE = "conformal.json"
LEVELS = tuple(round(percent / 100, 2) for percent in range(50, 100))  # coverage that can be asked for


@dataclass(frozen=True)
class Thresholds:
    """The least probability of a label in a set, for each of `LEVELS` in turn; 0: every label.

    `both`: where both orders were shown and the mean of their logits is taken; `one`: where a single order was.
    `groups`: how many prompts they were fitted on.
    """

    both: Sequence[float]
    one: Sequence[float]
    groups: int

    def least(self, coverage: float, orders: int) -> float:
        """The threshold for a `coverage` of `LEVELS`, rounded up to one."""
        place = next(i for i, level in enumerate(LEVELS) if level >= coverage - 1e-9)
        return (self.one if orders == 1 else self.both)[place]


def fit_thresholds(ab: np.ndarray, ba: np.ndarray, votes: np.ndarray, groups: Groups) -> Thresholds:
    """From logits [n, labels] of both orders, recalibrated as they are used, and `votes` like them.

    A prompt counts as one, however many conversations share it: they are not independent (Lee, Barber and Willett 2023,
    "Distribution-free inference with hierarchical data", arXiv 2306.06342). A row's voters share its weight.
    """
    both, one = softmax((ab + ba) / 2, axis=1), np.concatenate([softmax(ab, axis=1), softmax(ba, axis=1)])
    members = number_groups(groups)
    return Thresholds(
        both=least_probabilities(both, votes, members),
        one=least_probabilities(one, np.concatenate([votes, votes]), np.concatenate([members, members])),
        groups=int(members.max()) + 1,
    )


def least_probabilities(probabilities: np.ndarray, votes: np.ndarray, members: np.ndarray) -> list[float]:
    """For each of `LEVELS` the threshold that so many votes reach: [n, labels] twice, and the group [n] of each row.

    The score of a vote is its label's probability (Sadinle, Lei and Wasserman 2019, "Least ambiguous set-valued
    classifiers", whose sets are the smallest on average). The unknown group to come weighs as one that reaches no
    threshold (Lei et al. 2018, "Distribution-free predictive inference for regression"), which is what makes the
    coverage hold for few groups as well.
    """
    sizes = np.bincount(members)
    weights = shares(votes) / sizes[members][:, None] / (len(sizes) + 1)
    order = np.argsort(-probabilities, axis=None)
    reached, sorted_scores = np.cumsum(weights.ravel()[order]), probabilities.ravel()[order]
    places = np.searchsorted(reached, np.array(LEVELS) - 1e-12)
    return [float(sorted_scores[place]) if place < len(order) else 0.0 for place in places]


def sets_of(probabilities: np.ndarray, least: np.ndarray | float) -> np.ndarray:
    """Which labels are in each set: bool [n, labels]. The most likely label always is, so that no set is empty."""
    top = probabilities == probabilities.max(axis=1, keepdims=True)
    return np.asarray((probabilities >= np.broadcast_to(np.asarray(least), len(probabilities))[:, None]) | top)


def set_labels(inside: Sequence[bool] | np.ndarray, labels: Labels) -> list[Any]:
    """The labels of one set, `inside` [labels]."""
    return [label for label, there in zip(labels, inside, strict=True) if there]


def write_thresholds(folder: Path, thresholds: Thresholds) -> None:
    """Write `folder`/conformal.json."""
    write_json(folder / FILE, {"levels": LEVELS, **asdict(thresholds)})


def read_thresholds(folder: Path) -> Thresholds | None:
    """Those beside a model; None of an export of before. Raises `UserError` naming a file that holds none."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        both, one, groups = (found[name] for name in ("both", "one", "groups"))
        if not len(both) == len(one) == len(LEVELS) or not all(0 <= float(p) <= 1 for p in (*both, *one)):
            raise ValueError(f"{len(both)} and {len(one)} thresholds for {len(LEVELS)} levels")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no thresholds ({error!r}): delete it to go without sets, or export again"
        ) from error
    return Thresholds(both, one, groups)
