"""Stores that no scorer fills: their logits follow from what other stores hold."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from core.artefacts.building import Artefact
from core.labels import Labels, noted
from core.locks import alone
from core.provenance import Learned
from core.store.parts import clear
from core.store.rows import LOGITS
from core.store.seen import write_seen
from core.store.writing import StoreWriter
from teachers.scorers.config import Precision
from teachers.scoring_run import store_identity

log = logging.getLogger(__name__)


def write_derived(
    store: Artefact,
    logits: pl.DataFrame,
    seen: Mapping[int, Learned],
    hashes: Mapping[str, str],
    judge: str,
    labels: Labels,
    extra: Mapping[str, Any] | None = None,
    label_tokens: Sequence[str] | None = None,
) -> None:
    """Write a finished store of `logits` (schema `LOGITS`), in place of what is there.

    `seen` says what the judge of each fold learned from; `judge` names what it is,
    `labels` what it speaks of, `label_tokens` how it was asked for them.
    """
    with alone(store.folder):
        clear(store.folder)  # half of it may be there
        identity = store_identity(hashes["prompt"], Precision(), label_tokens)
        for (fold,), rows in logits.select(LOGITS.names()).cast(LOGITS).group_by("judge_fold", maintain_order=True):
            with StoreWriter(store.folder, identity, judge, fold, LOGITS) as writer:
                writer.append(rows)
            write_seen(store.folder, fold, seen[fold])
        store.finish(rows={"logits": len(logits)}, prompt=hashes, extra={**(extra or {}), **noted(labels)})
    log.info("%s: %d rows", store.folder, len(logits))
