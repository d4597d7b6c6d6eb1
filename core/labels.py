"""Which labels the votes of a data set have, and so the judges that learned from them: all three, or no tie.

Many data sets were collected without ties: nobody could vote for one. A judge has three outputs all the same, and so
has every store of logits. Where there are two labels, the tie's output is left out of every softmax, as if it were not
there. What is left of a judge that knows ties is P(a | no tie): it teaches, and is measured, by these.

`distill.prepare` finds the labels and notes them in the manifest's `extra`; every stage after it takes over the note.
Artefacts of earlier versions have none: three labels.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.artefacts.manifest import Manifest, read_manifest
from core.errors import UserError
from core.records import LABELS

if TYPE_CHECKING:
    import polars as pl

Labels = tuple[str, ...]
WITHOUT_TIES: Labels = LABELS[:2]
ENOUGH = 50  # voted conversations, without a vote for a tie among them: data with ties have some by then
NO_TIE = -30.0  # a tie's logit beside log-probabilities, where a store wants one and nobody can vote for it
NOTE = "labels"  # in a manifest's `extra`


def labels_of_votes(votes: "pl.Series") -> Labels:
    """The labels of a data set with these counts of votes (lists in the order of `LABELS`, null where nobody voted)."""
    voted = votes.drop_nulls()
    return WITHOUT_TIES if len(voted) >= ENOUGH and not (voted.list.get(2) > 0).any() else LABELS


def noted(labels: Labels) -> dict[str, Any]:
    """The note for a manifest's `extra`."""
    return {NOTE: [*labels]}


def labels_of(manifest: Manifest) -> Labels:
    """The labels of the artefact that a manifest describes."""
    return tuple(manifest.extra.get(NOTE, LABELS))


def labels_in(folder: Path) -> Labels:
    """The labels of a finished artefact. Raises `UserError` as `read_manifest` does."""
    return labels_of(read_manifest(folder))


def shared(labels: Iterable[Labels]) -> Labels:
    """What several judges can be asked together: no tie where one of them does not know any."""
    return min(labels, key=len, default=LABELS)


def among(values: Any, labels: Labels) -> Any:
    """Votes, logits or probabilities [..., 3] of `labels` alone: [..., len(labels)], an array or a tensor."""
    return values[..., : len(labels)]


def with_tie(values: np.ndarray, tie: float) -> np.ndarray:
    """Three columns again: `values` [n, 2 or 3], and `tie` for the tie where it was left out."""
    lacking = len(LABELS) - values.shape[-1]
    return np.pad(values, [*[(0, 0)] * (values.ndim - 1), (0, lacking)], constant_values=tie)


def check_knows(judge: Path, known: Labels, asked: Labels) -> None:
    """Raise `UserError` for a judge that learned from data without ties where people can vote for one."""
    if len(known) < len(asked):
        raise UserError(
            f"{judge} comes from data without ties and knows only {' and '.join(known)}, but these data have ties: "
            "take a judge that learned from votes for ties, too"
        )
