"""What stands behind the routes: conversations become prompts, prompts logits, logits verdicts.

All of it runs on the event loop, so nothing here needs a lock. Rendering goes to other threads, the scorer has its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Literal

import numpy as np

from core.exported import ExportedJudge
from core.prompts import Rendered
from core.records import ORDERS, Conversation, Order
from core.scoring import Scorer, to_own_order
from deploy.serving.admission import Queue
from deploy.serving.batching import Batcher
from deploy.serving.config import ServeConfig
from deploy.serving.jobs import Jobs
from deploy.serving.middleware import Traffic
from deploy.serving.problems import Unavailable
from deploy.serving.schemas import Pair, Result
from deploy.serving.verdicts import result
from eval.canaries.checking import check_canaries
from eval.config import CanaryMode
from eval.conformal import read_thresholds
from eval.recalibration import read_recalibration
from teachers.scorers.config import ScorerConfig
from teachers.scorers.opening import open_scorer


class Service:
    """One exported judge with its scorer, its queue and its jobs.

    `computes_otherwise`: how far off its answers are on this machine, in a sentence; None where they are as exported.
    """

    def __init__(
        self,
        exported: ExportedJudge,
        scorer: ScorerConfig,
        settings: ServeConfig,
        jobs_root: Path,
        canaries: CanaryMode,
        coverage: float,
    ) -> None:
        folder, content = exported.folder.resolve(), exported.manifest.content[:12]
        self.settings, self.renderer, self.max_tokens = settings, exported.renderer, exported.max_tokens
        self.model = exported.name
        self.choice = exported.choice
        self.recalibrate, self.labels = read_recalibration(folder), exported.labels
        self.thresholds = read_thresholds(folder)
        self.coverage = coverage
        self.queue = Queue(settings.max_queue)
        self.jobs = Jobs(jobs_root / content, self.judge, settings.max_jobs)
        self.traffic = Traffic(
            {
                "judge_queue_conversations": ("let in and not judged yet", lambda: self.queue.waiting),
                "judge_unfinished_jobs": ("accepted and not done", lambda: len(self.jobs.waiting)),
                "judge_cached_tokens": ("spared by the prefix cache so far", lambda: self.batcher.tokens_cached),
            }
        )
        self.failure: Exception | None = None
        self.computes_otherwise: str | None = None
        self._folder, self._scorer, self._canaries = exported.folder, scorer, canaries
        self._drain_until: float | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the scorer in the background and work on the jobs; at the end finish what it has begun, and close it."""
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
        with open_scorer(self._folder, self._scorer, self.max_tokens) as scorer:
            self.computes_otherwise = check_canaries(self._folder, self.renderer, scorer, self._canaries)
            yield scorer

    async def _work(self) -> None:
        """Work on jobs for as long as there is a scorer. What ends either ends the service; a restart resumes."""
        try:
            # Shielded: the batcher's own futures are not cancelled with this task.
            await asyncio.shield(asyncio.wrap_future(self.batcher.ready))
            await asyncio.gather(self.jobs.work(), asyncio.shield(asyncio.wrap_future(self.batcher.ended)))
        except Exception as error:
            self.failure = error

    @property
    def state(self) -> Literal["loading", "ready", "draining", "failed"]:
        if self.failure is not None:
            return "failed"
        if self._drain_until is not None:
            return "draining"
        return "ready" if self.batcher.ready.done() else "loading"

    def drain(self) -> None:
        """Accept no more work."""
        self._drain_until = time.monotonic() + self.settings.shutdown_seconds

    @property
    def over(self) -> bool:
        """Whether the server may stop: the scorer is dead, or what was accepted is done, or has had its time."""
        if self.failure is not None or self._drain_until is None:
            return self.failure is not None
        return not self.queue.waiting or time.monotonic() > self._drain_until

    def check_open(self) -> None:
        """Raise `Unavailable` unless the service takes work."""
        if self.state != "ready":
            raise Unavailable(f"the judge is {self.state}", 5)

    def places(self, count: int) -> AbstractContextManager[None]:
        """A place in the queue for each of `count` conversations. Raises `Unavailable` where there are too few."""
        self.check_open()
        return self.queue.places(count)

    async def judge(self, pairs: Sequence[Pair], orders: Sequence[Order]) -> list[Result]:
        """A result for each of `pairs`, in their order. Raises `Closed` where the scorer is gone."""
        conversations = [pair.conversation(str(place)) for place, pair in enumerate(pairs)]
        by_pair, firsts = await self.logits(conversations, orders)
        ids = [str(place) if pair.id is None else pair.id for place, pair in enumerate(pairs)]
        least = None if self.thresholds is None else self.thresholds.least(self.coverage, len(orders))
        return [
            result(id, prompt, orders, each, self.recalibrate, self.labels, least)
            for id, prompt, each in zip(ids, firsts, by_pair, strict=True)
        ]

    async def logits(
        self, conversations: Sequence[Conversation], orders: Sequence[Order] = ORDERS
    ) -> tuple[np.ndarray, list[Rendered]]:
        """[conversations, orders, 3] in the conversations' own a and b, and their prompts in the first order.

        Raises `Closed` where the scorer is gone.
        """
        prompts = await self.rendered(conversations, orders)
        shown = await self.outputs(prompt.ids for prompt in prompts)
        own = [to_own_order(each, prompt.order) for prompt, each in zip(prompts, shown, strict=True)]
        return np.stack(own).reshape(len(conversations), len(orders), -1), prompts[:: len(orders)]

    async def rendered(self, conversations: Sequence[Conversation], orders: Sequence[Order]) -> list[Rendered]:
        """The prompts of `conversations`, all `orders` of each together; they are counted."""
        prompts = await asyncio.to_thread(lambda: list(self.renderer.render(conversations, orders)))
        self.traffic.judged(prompts, len(orders))
        return prompts

    async def outputs(self, prompts: Iterable[Sequence[int]]) -> list[np.ndarray]:
        """What the scorer gives for each prompt, scored together with those of all other requests.

        Raises `Closed` where the scorer is gone.
        """
        scored = [asyncio.wrap_future(self.batcher.submit(ids)) for ids in prompts]
        try:
            return await asyncio.gather(*scored)
        finally:
            for future in scored:
                future.cancel()  # where the client has gone, or another of them failed
