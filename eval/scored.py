"""Which conversations an evaluation scores, and which it fits its baselines on."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
from scipy.special import softmax

from core.data.arena_sim import TRUE_DISTRIBUTION
from core.errors import UserError
from core.labels import Labels, among, with_tie
from core.records import LABELS, TEST, Conversation
from core.scoring import swap_average
from core.store.reading import read_logits
from core.store.targets import REMEDY, check_texts
from core.tables import read_parquet

log = logging.getLogger(__name__)


def scored_and_training(
    conversations: Sequence[Conversation], split: str, fold: int, limit: int | None = None, *, unvoted: bool = False
) -> tuple[str, list[Conversation], list[Conversation]]:
    """(split, scored, training): up to `limit` conversations to score, and those that baselines may learn from.

    `split="test"` is the locked test split, from which nobody has learned; where the data have none it is
    fold `fold`, as with `split="fold"`, and the log says so. Conversations without votes are scored only where
    `unvoted` is set. Raises `UserError` where there are none.
    """
    voted = [c for c in conversations if c.votes or unvoted]
    if split == "test" and not any(c.fold == TEST for c in voted):
        log.warning(
            "these data have no test split: fold %d is scored, whose votes the judges' teachers may have seen; "
            "data.test_share makes one",
            fold,
        )
        split = "fold"
    scored = [c for c in voted if c.fold == (TEST if split == "test" else fold)]
    if not scored:
        raise UserError(f"fold={fold} of these data has no votes to evaluate on: choose another fold or data set")
    return split, scored[:limit], [c for c in conversations if c.fold not in (TEST, scored[0].fold)]


def as_voted_by(
    teacher: Path, scored: Sequence[Conversation], training: Sequence[Conversation], labels: Labels = LABELS
) -> tuple[list[Conversation], list[Conversation]]:
    """`scored` and `training` conversations with the verdict in the store of a `teacher` in place of votes.

    That is what a student is taught (`core.store.targets`): the softmax of the mean logits over orders and judges, of
    judges that were not trained on the row. Training rows that the store lacks have no votes. Raises `UserError` where
    it lacks some that are scored, or judged other texts.
    """
    conversations = [*scored, *training]
    logits = read_logits(teacher, REMEDY).filter(
        ~pl.col("in_sample"), pl.col("id").is_in([c.id for c in conversations])
    )
    check_texts(teacher, logits, conversations)
    averaged = swap_average(logits)
    values = softmax(among(averaged["logits"].to_numpy().astype(float), labels), axis=1)
    votes = dict(zip(averaged["id"], with_tie(values, 0.0).tolist(), strict=True))
    if lacking := [c.id for c in scored if c.id not in votes]:
        raise UserError(
            f"eval.truth=teacher: {teacher} lacks {len(lacking)} of the {len(scored)} conversations that are scored, "
            f"such as {lacking[:3]}; {REMEDY}"
        )
    voted = [replace(c, votes=votes.get(c.id)) for c in conversations]
    return voted[: len(scored)], voted[len(scored) :]


def true_distribution(data: Path, conversations: Sequence[Conversation]) -> pl.DataFrame | None:
    """The probabilities that a simulated arena drew its votes from, one row a conversation; None for other data.

    They are one more judge, and their entropy is the bound.
    """
    if not (data / TRUE_DISTRIBUTION).exists():
        return None
    ids = pl.DataFrame({"id": [c.id for c in conversations]})
    return ids.join(read_parquet(data / TRUE_DISTRIBUTION), on="id", how="left", maintain_order="left")
