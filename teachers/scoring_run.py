"""A scoring run: the rows that a store lacks go through a scorer, and are written part file by part file.

Prompts are rendered by a thread that stays ahead of the engine. A part file is written as soon as enough rows are
finished, while the engine works on. A Ctrl-C ends the prompts: what the engine still holds is finished and written.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import polars as pl

from core.artefacts.contents import MANIFEST
from core.errors import UserError
from core.progress import duration
from core.records import Conversation
from core.scoring import Scorer, check_finite
from core.store.writing import StoreWriter
from teachers.interrupts import STOPPED, Interrupt
from teachers.prefetching import ahead
from teachers.progress import ScoringProgress
from teachers.scorers.config import Precision

log = logging.getLogger(__name__)
PROMPTS_AHEAD = 2048  # rendered and waiting: some megabytes, seconds of a large engine's work


class Prompt(Protocol):
    """What a renderer of this project makes, for both responses (`core.prompts.Rendered`) or for one alone."""

    @property
    def id(self) -> str: ...
    @property
    def ids(self) -> list[int]: ...


P = TypeVar("P", bound=Prompt)


def store_identity(prompt_hash: str, precision: Precision, label_tokens: Sequence[str] | None = None) -> dict[str, str]:
    """What may not differ within a store: prompts, how the model is asked, and what it computes in."""
    return {
        "prompt": prompt_hash,
        "method": "classify" if label_tokens is None else "label_tokens",
        "labels": " ".join(map(repr, label_tokens or [])),
        "dtype": precision.dtype,
        "quantization": precision.quantization,
    }


def not_done(
    conversations: list[Conversation], writer: StoreWriter, sides: Sequence[str]
) -> tuple[list[Conversation], set[tuple[str, str]]]:
    """The conversations of which the store lacks a side, and the (id, side) that it has of these.

    Raises `UserError` for ids that it holds with other texts.
    """
    texts: dict[str, set[int]] = {}
    there: dict[str, set[str]] = {}
    for key, side, _, texts_of_row in writer.done.iter_rows():
        texts.setdefault(key, set()).add(texts_of_row)
        there.setdefault(key, set()).add(side)
    changed = [c.id for c in conversations if c.id in texts and texts[c.id] != {c.sided_fingerprint()}]
    if changed:
        raise UserError(
            f"{writer.folder} scored other texts under the same ids, such as {changed[:3]} ({len(changed)} in all): "
            "the data changed since; choose another teacher.name, or score again with overwrite=true"
        )
    todo = [c for c in conversations if len(there.get(c.id, ())) < len(sides)]
    return todo, {(c.id, side) for c in todo for side in there.get(c.id, ())}


@dataclass(frozen=True)
class ScoringRun:
    """What the scorers of one run share. `rows_per_part`: how many rows a crash can cost.

    `draws_all`: the scorer draws all prompts before it answers, so a Ctrl-C does not wait for them.
    """

    progress: ScoringProgress
    interrupt: Interrupt
    rows_per_part: int
    draws_all: bool = False

    def score(
        self,
        writer: StoreWriter,
        scorer: Scorer,
        prompts: Iterable[P],
        row: Callable[[P, np.ndarray], Mapping[str, Any]],
    ) -> None:
        """Score `prompts` and append `row(prompt, logits as shown)` of each to the store.

        Whatever stops it (an engine that dies, a full disk, a Ctrl-C), rows that are finished are written.
        """
        held: dict[int, P] = {}
        finished: list[Mapping[str, Any]] = []
        began, before = time.perf_counter(), scorer.tokens_cached
        try:
            for position, output in scorer.stream(self._ids(prompts, held)):
                prompt = held.pop(position)
                check_finite(output[None], [prompt.id])
                finished.append(row(prompt, output))
                self.progress.advance(len(prompt.ids), scorer.tokens_cached - before, time.perf_counter() - began)
                if len(finished) >= self.rows_per_part:
                    write(writer, finished)
                if self.interrupt.asked and self.draws_all:
                    break  # it has drawn all prompts already
        finally:
            self.progress.running(time.perf_counter() - began)
            self.progress.cached += scorer.tokens_cached - before
            write(writer, finished)

    def _ids(self, prompts: Iterable[P], held: dict[int, P]) -> Iterator[Sequence[int]]:
        """The token ids of `prompts` until somebody asks to stop; each prompt is put into `held`."""
        for position, prompt in enumerate(ahead(prompts, PROMPTS_AHEAD)):
            if self.interrupt.asked:
                return
            # Only the number of its ids is needed from here on; Ray draws all prompts, whose ids would be many GB.
            held[position] = replace(prompt, ids=range(len(prompt.ids)))  # type: ignore[type-var]
            yield prompt.ids


def write(writer: StoreWriter, finished: list[Mapping[str, Any]]) -> None:
    """Append the `finished` rows as one part file, and empty the list before: no row is written twice."""
    rows, finished[:] = list(finished), []
    if rows:
        table = pl.DataFrame(rows, schema=writer.schema)
        writer.append(table.sort(table.columns[:2]))  # equal ids side by side take no space


@contextmanager
def scoring_run(
    store: Path,
    rows: int,
    rows_per_part: int,
    *,
    draws_all: bool = False,
    price_per_hour: float | None = None,
    everything: int | None = None,
) -> Iterator[ScoringRun]:
    """Around the scoring of `rows` into `store`: progress, Ctrl-C, and at the end what `everything` would take.

    A run that was interrupted ends here, with exit code 130 and how to resume it.
    """
    if rows:
        (store / MANIFEST).unlink(missing_ok=True)  # it is not finished until they are there
    progress = ScoringProgress(rows, price_per_hour)
    try:
        with Interrupt() as interrupt:
            yield ScoringRun(progress, interrupt, rows_per_part, draws_all)
    finally:
        progress.close()
        if progress.rows:
            log.info("%s", progress.describe(progress.seconds))
    if interrupt.asked:
        log.info("stopped: %d of %d rows are in %s; rerun the same command to resume", progress.rows, rows, store)
        sys.exit(STOPPED)
    if everything is not None and progress.rows:
        seconds = progress.seconds / progress.rows * everything
        log.info("all %d rows would take about %s%s", everything, duration(seconds), progress.cost(seconds, everything))
