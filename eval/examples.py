"""Conversations worth reading: where the student lost most, and where it is farthest from its rival."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eval.judges.candidates import STUDENT
from eval.metrics import kl_rows, log_loss_rows

COUNT = 20  # of each list


@dataclass(frozen=True)
class Example:
    """A conversation with the student's log loss, KL(rival || student), and both judges' probabilities."""

    id: str
    votes: Sequence[float]
    log_loss: float
    kl: float
    student: Sequence[float]
    rival: Sequence[float]


@dataclass(frozen=True)
class Examples:
    """`worst` by the student's log loss, `disagreed` by KL(`rival` || student); one conversation of a prompt group."""

    rival: str
    worst: Sequence[Example]
    disagreed: Sequence[Example]


def find_examples(
    ids: Sequence[str], groups: Sequence[str], votes: np.ndarray, probabilities: Mapping[str, np.ndarray]
) -> Examples:
    """The student's examples; its rival is its teacher, or without one `surface`. Votes and probabilities: [n, 3]."""
    rival = "teacher" if "teacher" in probabilities else "surface"
    student, other = probabilities[STUDENT], probabilities[rival]
    losses, distances = log_loss_rows(student, votes), kl_rows(other, student)

    def largest(by: np.ndarray) -> list[Example]:
        order = np.argsort(-by, kind="stable")
        first = order[np.sort(np.unique(np.array(groups)[order], return_index=True)[1])]
        return [
            Example(
                id=ids[i],
                votes=votes[i].tolist(),
                log_loss=float(losses[i]),
                kl=float(distances[i]),
                student=student[i].tolist(),
                rival=other[i].tolist(),
            )
            for i in first[:COUNT]
        ]

    return Examples(rival, largest(losses), largest(distances))
