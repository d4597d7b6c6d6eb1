"""What a student learns from a store: soft targets by conversation, none of them leaked, none for other texts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from core.errors import UserError
from core.labels import Labels
from core.provenance import Learned
from core.records import LABELS, Conversation
from core.scoring import swap_average
from core.store.parts import NO_FOLD
from core.store.reading import read_logits
from core.store.seen import learned_by_judges

log = logging.getLogger(__name__)
REMEDY = "score the conversations first (make teacher-logits)"


@dataclass(frozen=True)
class Targets:
    """`logits` [a, b, tie] by id, the mean over orders and judges; ids `left_out`; what the judges that were asked
    `learned` from, which whoever learns from them inherits.
    """

    logits: dict[str, list[float]]
    left_out: set[str]
    learned: Learned


def soft_targets(
    store: Path,
    conversations: Sequence[Conversation],
    fold: int,
    rows: str,
    max_entropy: float | None,
    labels: Labels = LABELS,
) -> Targets:
    """What a store holds of `conversations`, for a student that holds out `fold`.

    `rows="out_of_fold"` takes what judges said of rows they were not trained on. `"in_fold"` takes what the teacher of
    the student's own fold said, which was trained on the same rows as the student will be (the LMSYS winner's way).
    To be left out are conversations without votes whose target's entropy over `labels` is above `max_entropy` nats.
    Raises `UserError` where the store leaks, is unfinished, or scored other texts under the same id.
    """
    logits = read_logits(store, REMEDY)
    if rows == "out_of_fold":
        logits = logits.filter(~pl.col("in_sample"))
    else:
        logits = logits.filter(pl.col("judge_fold").is_in([fold, NO_FOLD]))
    logits = logits.filter(pl.col("id").is_in([c.id for c in conversations]))
    check_texts(store, logits, conversations)
    learned = learned_by_judges(store, logits["judge_fold"].unique()).taught()
    averaged = swap_average(logits)
    targets = dict(zip(averaged["id"].to_list(), averaged["logits"].to_list(), strict=True))
    if max_entropy is None:
        return Targets(targets, set(), learned)
    unvoted = [c.id for c in conversations if c.votes is None and c.id in targets]
    unsure = {key for key in unvoted if entropy(targets[key][: len(labels)]) > max_entropy}
    log.info("%d of %d conversations without votes left out: entropy above %g", len(unsure), len(unvoted), max_entropy)
    return Targets(targets, unsure, learned)


def check_texts(store: Path, logits: pl.DataFrame, conversations: Sequence[Conversation]) -> None:
    """Raise `UserError` naming ids whose logits in `store` were given for other texts than `conversations` hold."""
    here = pl.DataFrame(
        {"id": [c.id for c in conversations], "now": [c.sided_fingerprint() for c in conversations]},
        schema={"id": pl.String, "now": pl.UInt64},
    )
    other = logits.join(here, on="id").filter(pl.col("fingerprint") != pl.col("now"))["id"].unique(maintain_order=True)
    if len(other):
        raise UserError(
            f"{store} scored other texts under the same ids, such as {other.head(3).to_list()} ({len(other)} in all): "
            "the data changed since; score them under another teacher.name, or anew with overwrite=true"
        )


def entropy(logits: Sequence[float]) -> float:
    """Entropy of softmax(logits) in nats."""
    p = np.exp(np.asarray(logits, dtype=float) - max(logits))
    p /= p.sum()
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())
