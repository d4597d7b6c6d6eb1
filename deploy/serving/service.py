"""What stands behind the routes: conversations become prompts, prompts logits, logits verdicts; and who is let in.

All of it runs on the event loop, so nothing here needs a lock. Rendering goes to other threads, the scorer has its own.
"""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from scipy.special import softmax

from core.config import CanaryMode
from core.exported import ExportedJudge
from core.prompts import Rendered
from core.records import LABELS, Order
from core.scoring import Scorer, to_own_order
from deploy.serving.batching import Batcher
from deploy.serving.config import ServeConfig
from deploy.serving.gate import Traffic
from deploy.serving.jobs import Jobs
from deploy.serving.schemas import Pair, Probabilities, Result, Unjudged, Verdict
from eval.canary_check import check_canaries
from eval.metrics import flip_rate
from eval.recalibration import read_recalibration
from teachers.scorers.opening import open_scorer

log = logging.getLogger(__name__)
LONGEST_PAUSE_SECONDS = 60


class Unavailable(Exception):
    """The service cannot take this now. `seconds`: when it is worth to try again."""

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


class Service:
    """One exported judge, its scorer and its jobs. `waiting`: conversations that were let in and have no result yet."""

    def __init__(self, judge: ExportedJudge, settings: ServeConfig, jobs_root: Path, canaries: CanaryMode) -> None:
        self.settings, self.renderer, self.max_tokens = settings, judge.renderer, judge.max_tokens
        self.model = f"{judge.folder.resolve().parent.name}/{judge.folder.resolve().name}@{judge.manifest.content[:12]}"
        self.recalibrate = read_recalibration(judge.folder)
        self.jobs = Jobs(jobs_root / judge.manifest.content[:12], self.judge, settings.max_jobs)
        self.waiting = 0
        self.traffic = Traffic(
            {
                "judge_queue_conversations": ("let in and not judged yet", lambda: self.waiting),
                "judge_unfinished_jobs": ("accepted and not done", lambda: len(self.jobs.waiting)),
                "judge_cached_tokens": ("spared by the prefix cache so far", lambda: self.batcher.tokens_cached),
            }
        )
        self.failure: Exception | None = None
        self.computes_otherwise: str | None = None  # than was exported: how, in a sentence
        self._judge, self._canaries = judge, canaries
        self._drain_until: float | None = None
        self._began, self._done = 0.0, 0  # of the work without a pause that goes on: how fast it is

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the scorer in the background and work on the jobs; at the end close it, with what it has begun done."""
        self.batcher = Batcher(self._open, self.settings.max_wait_ms)
        worker = asyncio.create_task(self._work())
        try:
            yield
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
            await asyncio.to_thread(self.batcher.close)
            self.jobs.close()

    @contextmanager
    def _open(self) -> Iterator[Scorer]:
        with open_scorer(self._judge.folder, self.settings.scorer, self.max_tokens) as scorer:
            self.computes_otherwise = check_canaries(self._judge.folder, self.renderer, scorer, self._canaries)
            yield scorer

    async def _work(self) -> None:
        """Jobs, for as long as there is a scorer. What ends either ends the service: started again, it goes on."""
        ready, ended = (asyncio.wrap_future(future) for future in (self.batcher.ready, self.batcher.ended))
        try:
            await asyncio.shield(ready)  # the batcher's own futures are not cancelled with this task
            log.info("%s is ready", self.model)
            await asyncio.gather(self.jobs.work(), asyncio.shield(ended))
        except Exception as error:
            self.failure = error

    # Who is let in.

    @property
    def state(self) -> Literal["loading", "ready", "draining", "failed"]:
        if self.failure is not None:
            return "failed"
        if self._drain_until is not None:
            return "draining"
        return "ready" if self.batcher.ready.done() else "loading"

    def drain(self) -> None:
        """Let nobody in any more."""
        self._drain_until = time.monotonic() + self.settings.shutdown_seconds

    @property
    def over(self) -> bool:
        """Whether the server may stop: the scorer is dead, or what was let in is done, or has had its time."""
        if self.failure is not None or self._drain_until is None:
            return self.failure is not None
        return not self.waiting or time.monotonic() > self._drain_until

    def check_open(self) -> None:
        """Raise `Unavailable` unless the service takes work."""
        if self.state != "ready":
            raise Unavailable(f"the judge is {self.state}", 5)

    @contextmanager
    def admitted(self, count: int) -> Iterator[None]:
        """Hold a place in the queue for each of `count` conversations. Raises `Unavailable` where there are too few."""
        self.check_open()
        if self.waiting + count > self.settings.max_queue:
            raise Unavailable(
                f"{self.waiting} conversations wait and {count} more would be over {self.settings.max_queue}",
                self._pause(),
            )
        if not self.waiting:
            self._began, self._done = time.monotonic(), 0
        self.waiting += count
        try:
            yield
            self._done += count
        finally:
            self.waiting -= count

    def _pause(self) -> int:
        """Seconds until half of what waits is done, at the present speed."""
        seconds = (time.monotonic() - self._began) / max(self._done, 1) * self.waiting / 2
        return min(LONGEST_PAUSE_SECONDS, max(1, math.ceil(seconds)))

    # Judging.

    async def judge(self, pairs: Sequence[Pair], orders: Sequence[Order]) -> list[Result]:
        """A result for each of `pairs`, in their order. Raises `Closed` where the scorer is gone."""
        conversations = [pair.conversation(str(place)) for place, pair in enumerate(pairs)]
        prompts = await asyncio.to_thread(lambda: list(self.renderer.render(conversations, orders)))
        shown = [asyncio.wrap_future(self.batcher.submit(prompt.ids)) for prompt in prompts]
        try:
            logits = await asyncio.gather(*shown)
        finally:
            for future in shown:
                future.cancel()  # of a client that has gone, or where others of them failed
        own = [to_own_order(row, prompt.order) for prompt, row in zip(prompts, logits, strict=True)]
        self.traffic.judged(prompts, len(orders))
        count = len(orders)
        return [
            self._result(
                str(place) if pair.id is None else pair.id,
                prompts[place * count],
                orders,
                np.stack(own[place * count :][:count]),
            )
            for place, pair in enumerate(pairs)
        ]

    def _result(self, id: str, prompt: Rendered, orders: Sequence[Order], logits: np.ndarray) -> Result:
        """From `logits` [orders, 3], in the conversation's own a and b."""
        if not np.isfinite(logits).all():
            return Unjudged(
                id=id, error="the judge gave logits that are not finite: serve it with serve.scorer.dtype=fp32"
            )
        # Recalibration is affine: on each order's logits and then averaged it is what it is on their mean.
        recalibrated = self.recalibrate(logits.astype(np.float64))
        mean = recalibrated.mean(axis=0)
        return Verdict(
            id=id,
            probabilities=_probabilities(mean),
            verdict=_verdict(mean),
            by_order={order: _probabilities(row) for order, row in zip(orders, recalibrated, strict=True)},
            flips=bool(flip_rate(recalibrated[:1], recalibrated[1:])) if len(orders) > 1 else None,
            prompt_tokens=len(prompt.ids),
            truncated=prompt.truncated,
        )


def _probabilities(logits: np.ndarray) -> Probabilities:
    return Probabilities(**dict(zip(LABELS, softmax(logits).tolist(), strict=True)))


def _verdict(logits: np.ndarray) -> Literal["a", "b", "tie"]:
    a, b, tie = logits
    if max(a, b) <= tie or a == b:
        return "tie"
    return "a" if a > b else "b"
