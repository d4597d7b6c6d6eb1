"""Filling a store: what a judge has not scored yet goes through its scorer, and is written part by part.

Prompts are rendered by a thread that stays ahead of the engine. A part is written as soon as enough rows are finished,
while the engine works on. A Ctrl-C ends the prompts: what the engine still holds is finished and written.
"""

import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import numpy as np
import polars as pl
from tqdm import tqdm

from core.artefacts.contents import MANIFEST
from core.errors import UserError
from core.records import Conversation
from core.scoring import Scorer, check_finite
from core.store.writing import StoreWriter
from distill.config import Config
from teachers.scorers.config import precision

log = logging.getLogger(__name__)
PROMPTS_AHEAD = 2048  # rendered and waiting: some megabytes, seconds of a large engine's work
STOPPED = 130  # the exit code of what a Ctrl-C ended
NOTE_SECONDS = 60  # between two lines of progress where nobody watches a bar
T = TypeVar("T")


class Interrupt:
    """Within it, the first Ctrl-C (or SIGTERM, as rented machines send it) sets `asked`; the second is one as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            for number in self._before:
                signal.signal(number, self._ask)
        else:
            self._before = {}
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("finishing what is in hand, then stopping; once more stops at once", file=sys.stderr)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class Progress:
    """Rows, rates, time left and cost of a whole scoring run, as a bar or, where nobody watches, as a line a minute."""

    def __init__(self, total: int, price_per_hour: float | None) -> None:
        """`total`: rows to score, over all judges. Only seconds within `running` count, not the start of engines."""
        self.total, self.price = total, price_per_hour
        self.rows = self.tokens = self.cached = 0
        self.seconds = 0.0
        self._bar = tqdm(total=total, unit=" rows", dynamic_ncols=True, disable=None, bar_format="{l_bar}{bar}| {desc}")
        self._noted = time.monotonic()

    def running(self, seconds: float) -> None:
        """Add the time that a scorer was at work."""
        self.seconds += seconds

    def advance(self, tokens: int, cached: int, elapsed: float) -> None:
        """One more row is scored; `cached` prompt tokens of this scorer came from its cache until now."""
        self.rows, self.tokens = self.rows + 1, self.tokens + tokens
        if self._bar.disable:
            if time.monotonic() - self._noted > NOTE_SECONDS:
                self._noted = time.monotonic()
                log.info("%s", self.describe(self.seconds + elapsed, cached))
        else:
            self._bar.set_description_str(self.describe(self.seconds + elapsed, cached), refresh=False)
            self._bar.update()

    def describe(self, seconds: float, cached: int = 0) -> str:
        """One line: `1,200 of 9,000 rows, 41.2 rows/s, 30,112 tokens/s, 38% cached, 0 h 3 min left, about 2.41`."""
        seconds = max(seconds, 1e-9)
        line = f"{self.rows:,} of {self.total:,} rows, {self.rows / seconds:.1f} rows/s, "
        line += f"{self.tokens / seconds:,.0f} tokens/s, {(self.cached + cached) / max(1, self.tokens):.0%} cached"
        if 0 < self.rows < self.total:
            left = (self.total - self.rows) * seconds / self.rows
            line += f", {duration(left)} left" + self.cost(left)
        return line

    def cost(self, seconds: float) -> str:
        """`, about 2.41` at the given price per hour; nothing without one."""
        return "" if self.price is None else f", about {seconds / 3600 * self.price:,.2f} in cost"

    def close(self) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """`3 h 05 min`, or `42 s` for less than two minutes."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def open_writer(
    config: Config, folder: Path, hashes: Mapping[str, str], judge: str, fold: int, schema: pl.Schema
) -> StoreWriter:
    """The store's writer for one judge; what the identity names may not differ within a store."""
    teacher, dtype, quantization = config.teacher, *precision(config.scorers.teacher)
    identity = {
        "prompt": hashes["prompt"],
        "method": teacher.method,
        "labels": " ".join(map(repr, teacher.labels)) if teacher.method == "label_tokens" else "",
        "dtype": dtype,
        "quantization": quantization,
    }
    return StoreWriter(folder, identity, judge, fold, schema)


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
            "the data changed since; choose another teacher.name, or score anew with overwrite=true"
        )
    todo = [c for c in conversations if len(there.get(c.id, ())) < len(sides)]
    return todo, {(c.id, side) for c in todo for side in there.get(c.id, ())}


@contextmanager
def scoring_run(config: Config, store: Path, rows: int, everything: int) -> Iterator[tuple[Progress, Interrupt]]:
    """Around the scoring of `rows`: progress, Ctrl-C, and after `limit` what `everything` would take.

    A run that was interrupted ends here, with exit code 130 and the word how it goes on.
    """
    if rows:
        (store / MANIFEST).unlink(missing_ok=True)  # it is not finished until they are there
    progress = Progress(rows, config.teacher.price_per_hour)
    try:
        with Interrupt() as interrupt:
            yield progress, interrupt
    finally:
        progress.close()
        if progress.rows:
            log.info("%s", progress.describe(progress.seconds))
    if interrupt.asked:
        log.info("stopped: %d of %d rows are written in %s; the same command goes on", progress.rows, rows, store)
        sys.exit(STOPPED)
    if config.limit is not None and progress.rows:
        seconds = progress.seconds / progress.rows * everything
        log.info("all %d rows would take about %s%s", everything, duration(seconds), progress.cost(seconds))


def fill(
    writer: StoreWriter,
    scorer: Scorer,
    rendered: Iterable[Any],
    row: Callable[[Any, np.ndarray], dict[str, Any]],
    rows_per_part: int,
    progress: Progress,
    interrupt: Interrupt,
    draws_all: bool = False,
) -> None:
    """Score `rendered` and append `row(rendered, logits as shown)` of each to the store.

    `draws_all`: the scorer draws all prompts before it answers, so a Ctrl-C does not wait for them. Whatever happens
    (an engine that dies, a full disk, a Ctrl-C), rows that are finished are written.
    """
    held: dict[int, Any] = {}
    finished: list[dict[str, Any]] = []
    began = time.perf_counter()

    def prompts() -> Iterator[Sequence[int]]:
        for position, item in enumerate(ahead(rendered, PROMPTS_AHEAD)):
            if interrupt.asked:
                return
            # Only the number of its ids is needed from here on; Ray draws all prompts, whose ids would be many GB.
            held[position] = replace(item, ids=range(len(item.ids)))
            yield item.ids

    def write() -> None:
        rows, finished[:] = list(finished), []
        if rows:
            table = pl.DataFrame(rows, schema=writer.schema)
            writer.append(table.sort(table.columns[:2]))  # equal ids side by side take no space

    stream = scorer.stream(prompts())
    try:
        for position, output in stream:
            item = held.pop(position)
            check_finite(output[None], [item.id])
            finished.append(row(item, output))
            progress.advance(len(item.ids), scorer.tokens_cached, time.perf_counter() - began)
            if len(finished) >= rows_per_part:
                write()
            if interrupt.asked and draws_all:
                break  # it has drawn all prompts already
    finally:
        progress.running(time.perf_counter() - began)
        progress.cached += scorer.tokens_cached
        write()


def ahead(items: Iterable[T], size: int) -> Iterator[T]:
    """`items` as a thread produces them, up to `size` of them ahead; its exceptions are raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    closed = threading.Event()

    def put(entry: tuple[bool, Any]) -> bool:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # raised again where the items are used
            put((False, error))

    thread = threading.Thread(target=produce, name="rendering", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if not more:
                if item is not None:
                    raise item
                return
            yield item
    finally:
        closed.set()
        thread.join()
