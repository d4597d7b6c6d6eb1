"""Stored opinions as a teacher: from somebody's logits, probabilities or scores to a store of logits."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from core.artefacts.building import Artefact
from core.artefacts.identity import identity_hash
from core.data.files.rows import Source
from core.errors import UserError
from core.labels import NO_TIE, Labels, check_knows, with_tie
from core.provenance import Learned
from core.records import LABELS, ORDERS, Conversation
from core.store.parts import NO_FOLD
from core.store.rows import LOGITS, REWARDS
from teachers.config import StoredConfig
from teachers.derived import write_derived
from teachers.reward_logits import write_fit
from teachers.rewards import RESPONSES
from teachers.stored.columns import Quantity
from teachers.stored.reading import (
    Opinions,
    holds_responses,
    open_file,
    read_opinions,
    read_scores,
    scores_of_data,
)

log = logging.getLogger(__name__)
BEHIND = {"none": Learned(), "unknown": Learned.unknown()}  # any other word is a column of folds
LEAST = 1e-6  # a probability of nothing stands for so much: its logarithm has to be finite
EXACT = 1e-6  # how far from one a sum of probabilities may be without a word
TOLERANCE = 1e-3  # by which probabilities may miss one, for the rounding of who wrote them


def source_of(config: StoredConfig, log_odds: bool) -> tuple[Source | None, dict[str, Any]]:
    """The table with the opinions, and what it is known by in an artefact.

    None: the data's own scores, which are `log_odds` or not.
    """
    source = None if config.file is None else open_file(config.file)
    told = source.identity if source is not None else {"log_odds": True} if log_odds else {}
    return source, {"stored": {"source": told, "learned_from": config.learned_from}}


def write_stored(
    artefact: Artefact,
    source: Source | None,
    rows: Sequence[Conversation],
    labels: Labels,
    learned_from: str,
    l2: float,
    log_odds: bool,
) -> None:
    """Write the opinions on `rows` into a finished store; people voted for `labels`.

    Scores of single responses become logits by the Bradley-Terry fit with the penalty `l2`. Where nobody could vote for
    a tie, the difference of two log-odds is a pair's already; `log_odds`: those in the data are. Raises `UserError`
    where the file does not cover the rows, or says of one what cannot be.
    """
    if artefact.is_finished():
        log.info("%s is finished", artefact.folder)
        return
    name = identity_hash(artefact.identity["stored"])
    hashes = {"template": "none", "prompt": name}
    folds = None if learned_from in BEHIND else learned_from
    if source is None:
        where, opinions = "the data", scores_of_data(rows, log_odds, labels, folds)
    elif holds_responses(source):
        where, opinions = source.where, read_scores(source, rows, labels, folds)
    else:
        where, opinions = source.where, read_opinions(source, rows, folds)
    if opinions.columns.quantity != "scores":
        table, seen = as_logits(opinions, rows, where), seen_by(opinions, rows, learned_from)
        check_knows(Path(where), LABELS[: opinions.columns.labels], labels)
        write_derived(artefact, judged(table, opinions, rows, seen), seen, hashes, name, labels)
        return
    if folds is not None:
        raise UserError(
            f"teacher.stored.learned_from={folds}: scores are fitted on the votes of other folds, whatever gave them "
            "learned from: say none or unknown"
        )
    scores = [(said[None][0], said[None][1]) for said in (opinions.values[c.id] for c in rows)]
    write_fit(artefact, rewards(scores, rows), rows, l2, BEHIND[learned_from], hashes, labels)


def rewards(scores: Sequence[tuple[float, float]], rows: Sequence[Conversation]) -> pl.DataFrame:
    """Scores of responses a and b as a store of rewards has them."""
    broken = [c.id for c, both in zip(rows, scores, strict=True) if not np.isfinite(both).all()]
    if broken:
        raise UserError(f"{len(broken)} conversations have scores that are not finite, such as {broken[:3]}: mend them")
    table = {
        "id": [c.id for c in rows for _ in RESPONSES],
        "response": [response for _ in rows for response in RESPONSES],
        "rewards": [[score] for both in scores for score in both],
        "fingerprint": [c.sided_fingerprint() for c in rows for _ in RESPONSES],
    }
    frame = pl.DataFrame(table, schema_overrides={"fingerprint": pl.UInt64})
    frame = frame.with_columns(prompt_tokens=0, truncated=False, judge_fold=NO_FOLD)
    return frame.select(REWARDS.names()).cast(REWARDS)


def as_logits(opinions: Opinions, rows: Sequence[Conversation], where: str) -> pl.DataFrame:
    """id, order, logits and outside of both orders; an opinion of no order, or of one alone, stands for both.

    Raises `UserError` where some conversations have both orders and others do not.
    """
    if len({len(opinions.values[c.id]) for c in rows}) > 1:
        odd = next(c.id for c in rows if len(opinions.values[c.id]) == 1)
        raise UserError(f"{where}: {odd} is judged in one order alone, others in both: give all the same")
    said = [opinions.values[c.id] for c in rows]
    values = np.array([[own.get(order, next(iter(own.values()))) for order in ORDERS] for own in said])
    logits, outside = to_logits(values.reshape(-1, values.shape[-1]), opinions, rows, where)
    return pl.DataFrame(
        {
            "id": [c.id for c in rows for _ in ORDERS],
            "order": [order for _ in rows for order in ORDERS],
            "logits": with_tie(logits, NO_TIE).astype(np.float32),
            "outside": outside,
        },
        schema_overrides={name: LOGITS[name] for name in ("logits", "outside")},
    )


def to_logits(
    values: np.ndarray, opinions: Opinions, rows: Sequence[Conversation], where: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """Logits [n, labels], and the mass outside the labels where log-probabilities leave some, of the file's numbers."""
    quantity: Quantity = opinions.columns.quantity

    def refuse(wrong: Any, why: str) -> None:
        if wrong.any():
            at = int(np.argmax(wrong))
            name = rows[at // len(ORDERS)].id
            raise UserError(f"{where}, row {opinions.lines[name]}: {name} has {quantity} {values[at].tolist()}, {why}")

    if quantity == "logits":
        refuse(~np.isfinite(values).all(axis=1), "which are not finite: mend it, or leave it out")
        return values, None
    probabilities = values if quantity == "probabilities" else np.exp(values)
    refuse((probabilities < 0).any(axis=1), "one of which is negative: is it another quantity? Name the columns for it")
    totals = probabilities.sum(axis=1)
    remedy = (
        f"whose probabilities sum to {{}}: one is expected, to {TOLERANCE:g}; is it another quantity, or in percent?"
    )
    off = totals - 1 if quantity == "log-probabilities" else np.abs(totals - 1)
    refuse((off > TOLERANCE) | (totals <= 0), remedy.format(f"{totals[int(np.argmax(off))]:.6g}"))
    if quantity == "probabilities" and (inexact := int((off > EXACT).sum())):
        log.info("%s: %d of %d rows do not sum to one to %g: renormalised", where, inexact, len(off), EXACT)
    if nothing := int((probabilities < LEAST).any(axis=1).sum()):
        log.info("%s: %d rows have a probability below %g, which stands for it", where, nothing, LEAST)
    logits = np.log(np.maximum(probabilities, LEAST))
    return logits, np.maximum(0, 1 - totals) if quantity == "log-probabilities" else None


def seen_by(opinions: Opinions, rows: Sequence[Conversation], learned_from: str) -> dict[int, Learned]:
    """What the judge of each fold learned from: of a column of folds, the rows of all others."""
    if learned_from in BEHIND:
        return {NO_FOLD: BEHIND[learned_from]}
    folds = {opinions.folds[c.id] for c in rows}
    known = [c for c in rows if opinions.folds[c.id] is not None]
    return {
        NO_FOLD if fold is None else fold: Learned.of(c for c in known if opinions.folds[c.id] != fold)
        for fold in folds
    }


def judged(
    table: pl.DataFrame, opinions: Opinions, rows: Sequence[Conversation], seen: Mapping[int, Learned]
) -> pl.DataFrame:
    """The logits with what a store knows of each row."""
    facts = []
    for c in rows:
        fold = opinions.folds[c.id]
        judge = NO_FOLD if fold is None else fold
        facts.append((c.id, judge, c.sided_fingerprint(), c.fingerprint() in seen[judge].directly))
    schema = {"id": pl.String, "judge_fold": pl.Int32, "fingerprint": pl.UInt64, "in_sample": pl.Boolean}
    told = pl.DataFrame(facts, schema=schema, orient="row")
    return table.join(told, on="id", how="left", maintain_order="left").with_columns(prompt_tokens=0, truncated=False)
