"""One scorer for many requests at once: a thread owns it, and prompts from all requests share its streams.

A scorer draws prompts while it works (`core.scoring.Scorer`), so a prompt that arrives joins the running stream: as
long as prompts wait, batches stay full. A stream ends when none waits, because a scorer that waited for the next prompt
would hold back results that are finished. The next prompt starts a new stream.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from core.scoring import Scorer

log = logging.getLogger(__name__)


class Closed(Exception):
    """The scorer takes no more prompts, or died before it reached this one."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    ids: Sequence[int]
    logits: "Future[np.ndarray]" = field(default_factory=Future)


class Batcher:
    """Scores prompts that any thread submits.

    `ready` is done when the scorer is open, `ended` when its thread is over. Where the scorer cannot be opened, or
    dies, they raise the reason.
    """

    def __init__(self, open_scorer: Callable[[], AbstractContextManager[Scorer]], max_wait_ms: float) -> None:
        """Start opening the scorer. A prompt that finds it idle waits `max_wait_ms` for others to share its batch."""
        self.ready: Future[None] = Future()
        self.ended: Future[None] = Future()
        self.tokens_cached = 0
        self._open, self._max_wait = open_scorer, max_wait_ms / 1000
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self._lock = threading.Lock()  # no prompt is queued behind the end marker
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def submit(self, ids: Sequence[int]) -> "Future[np.ndarray]":
        """A future of the logits, float32 [3] as shown; cancelled in time, its prompt is not scored.

        Raises `Closed`, now or through the future.
        """
        waiting = _Waiting(ids)
        with self._lock:
            if self._closed:
                raise Closed
            self._queue.put(waiting)
        return waiting.logits

    def close(self) -> None:
        """Score what was submitted and not cancelled, then close the scorer; returns once it is closed."""
        self._close()
        self._thread.join()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._queue.put(None)

    def _run(self) -> None:
        try:
            with self._open() as scorer:
                self.ready.set_result(None)
                while (first := self._queue.get()) is not None:
                    self._score(scorer, first)
        except Exception as error:  # whatever it is, all waiting requests must learn of it
            self._end(error)
        else:
            self._end(None)

    def _score(self, scorer: Scorer, first: _Waiting) -> None:
        """Score one stream, from `first` until the queue is empty."""
        drawn: dict[int, Future[np.ndarray]] = {}
        try:
            for position, logits in scorer.stream(self._draw(first, drawn)):
                drawn.pop(position).set_result(logits)
                self.tokens_cached = scorer.tokens_cached
        except Exception as error:
            for future in drawn.values():
                future.set_exception(Closed(str(error)))
            raise

    def _draw(self, first: _Waiting, drawn: "dict[int, Future[np.ndarray]]") -> Iterator[Sequence[int]]:
        """The prompts that wait, and those that arrive in time; `drawn` receives the future of each position."""
        deadline = time.monotonic() + self._max_wait
        waiting: _Waiting | None = first
        position = 0
        while waiting is not None:
            if waiting.logits.set_running_or_notify_cancel():
                drawn[position] = waiting.logits
                position += 1
                yield waiting.ids
            try:
                waiting = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
        self._queue.put(None)  # the end marker, for `_run` to see

    def _end(self, error: Exception | None) -> None:
        self._close()
        while (waiting := self._queue.get()) is not None:
            if waiting.logits.set_running_or_notify_cancel():
                waiting.logits.set_exception(Closed(str(error or "the scorer is closed")))
        for future in (self.ready, self.ended):
            if not future.done():
                future.set_exception(error) if error else future.set_result(None)
