"""Stores that no scorer fills: their logits follow from what other stores hold."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from core import runs
from core.provenance import Learned
from core.store.parts import clear
from core.store.store import LOGITS, write_seen
from distill.config import Config
from teachers.scoring_run import open_writer

log = logging.getLogger(__name__)


def write_derived(
    config: Config,
    store: Path,
    logits: pl.DataFrame,
    seen: Mapping[int, Learned],
    identity: Mapping[str, object],
    parents: Sequence[Path],
    hashes: Mapping[str, str],
    judge: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a finished store of `logits` (schema `LOGITS`), in place of what is there.

    `seen` says what the judge of each fold learned from; `judge` names what it is.
    """
    with runs.alone(store):
        clear(store)  # half of it may be there
        for (fold,), part in logits.select(LOGITS.names()).cast(LOGITS).group_by("judge_fold", maintain_order=True):
            with open_writer(config, store, hashes, judge, fold, LOGITS) as writer:
                writer.append(part)
            write_seen(store, fold, seen[fold])
        rows = {"logits": len(logits)}
        runs.write_manifest(
            store, "teacher", identity, parents, config.root, rows=rows, prompt=hashes, extra=extra or {}
        )
    log.info("%s: %d rows", store, len(logits))
