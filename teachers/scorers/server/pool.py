"""Requests to several servers: who gets the next one, what is asked again, and when to give up.

Each server has a number of slots and takes the next request when one is free, so a slow one gets less. A server that
fails rests, twice as long each time, then a single request probes it before the others follow (a circuit breaker);
meanwhile its requests move to servers that work.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpx

from core.errors import UserError
from teachers.scorers.server.answers import TryAgain

log = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
Ask = Callable[[httpx.AsyncClient, str, list[Any]], Awaitable[Any]]  # prompts to a URL, in whatever form it takes


@dataclass(eq=False, slots=True)
class Server:
    """One server: what it is working on, and whether it works. `failures`: probes in a row, and what led to them."""

    url: str
    slots: int
    in_flight: int = 0
    failures: int = 0
    rests_until: float = 0.0  # of time.monotonic()
    probed: bool = False

    def is_free(self, now: float) -> bool:
        rested = not self.failures or (not self.probed and now >= self.rests_until)
        return rested and self.in_flight < self.slots

    def begin(self) -> bool:
        """Count a request in; whether it is a probe."""
        self.in_flight += 1
        self.probed = self.failures > 0
        return self.probed

    def end(self, probe: bool, failure: TryAgain | None) -> None:
        """Count a request out. Of those that were under way when the server began to fail, only the first tells."""
        self.in_flight -= 1
        news, now = probe or not self.failures, time.monotonic()
        if probe:
            self.probed = False
        if failure is not None:
            self.failures += news
            pause = max(pause_after(self.failures) if news else 0.0, failure.after)
            self.rests_until = max(self.rests_until, now + pause)
            if news:
                log.warning("%s: %s; asking again in %.1f s", self.url, failure, pause)
        elif probe:
            self.failures = 0


@dataclass(eq=False, slots=True)
class Request:
    """Prompts that are asked together, as token ids or messages. `refusals`: how often it failed where no probe did."""

    positions: list[int]
    prompts: list[Any]
    refusals: int = 0
    refused_by: Server | None = None


class Sent(NamedTuple):
    """A request under way. `probe`: whether it is the one that tells if a failing server works again."""

    request: Request
    server: Server
    probe: bool


class Pool:
    """The requests of one stream, on their way to `urls`. One plain loop decides what is sent where, between the steps
    of an event loop that only waits for answers.
    """

    def __init__(
        self,
        urls: Sequence[str],
        slots: int,
        retries: int,
        ask: Ask,
        options: dict[str, Any],
        group: str = "scorers.*",
    ) -> None:
        """`slots`: requests in flight to each server; `options` are those of the HTTP client; `group`: of the keys."""
        self._group = group
        self._servers = [Server(url, slots) for url in urls]
        self._slots, self._retries, self._ask = slots * len(urls), retries, ask
        self._again: list[Request] = []
        self._running: dict[asyncio.Task[Any], Sent] = {}
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(**options)

    def answers(self, fresh: Iterator[Request]) -> Iterator[tuple[Request, Any]]:
        """Each request with what was answered, as it arrives.

        Raises `UserError` for what no further try can mend, and when the retries are used up.
        """
        while True:
            now = time.monotonic()
            self._send_again(now)
            self._send_fresh(fresh, now)
            if not self._running and not self._again:
                return
            for task in self._wait(now):
                sent = self._running.pop(task)
                try:
                    answers = task.result()
                except TryAgain as failure:
                    self._failed(sent, failure)
                else:
                    sent.server.end(sent.probe, None)
                    yield sent.request, answers

    def close(self) -> None:
        """Hang up: vLLM drops the work of a connection that is closed."""
        self._loop.run_until_complete(self._leave())
        self._loop.close()

    def _send(self, request: Request, server: Server) -> None:
        task = self._loop.create_task(self._call(server.url, request.prompts))
        self._running[task] = Sent(request, server, server.begin())
        self._loop.run_until_complete(asyncio.sleep(0))  # it leaves while further prompts are drawn

    async def _call(self, url: str, prompts: list[Any]) -> Any:
        return await self._ask(self._client, url, prompts)

    def _send_again(self, now: float) -> None:
        for request in [*self._again]:
            if server := choose(self._servers, request.refused_by, now):
                self._again.remove(request)
                self._send(request, server)

    def _send_fresh(self, fresh: Iterator[Request], now: float) -> None:
        while len(self._running) + len(self._again) < self._slots and (server := choose(self._servers, None, now)):
            if (upcoming := next(fresh, None)) is None:
                return
            self._send(upcoming, server)

    def _wait(self, now: float) -> list[asyncio.Task[Any]]:
        """The tasks that are done, those that succeeded first; none where a server has rested meanwhile."""
        rests = min((s.rests_until - now for s in self._servers if s.rests_until > now), default=None)
        if not self._running:
            assert rests is not None, "requests wait while a server is free"
            self._loop.run_until_complete(asyncio.sleep(rests))
            return []
        waits = asyncio.wait(self._running, timeout=rests, return_when=asyncio.FIRST_COMPLETED)
        done, _ = self._loop.run_until_complete(waits)
        return sorted(done, key=lambda task: task.exception() is not None)

    def _failed(self, sent: Sent, failure: TryAgain) -> None:
        """Have the request asked again, elsewhere if possible. Raises `UserError` when patience is at its end."""
        request, server, probe = sent
        server.end(probe, failure)
        request.refused_by = server
        request.refusals += not probe  # that a failing server still fails is no fault of the request
        if request.refusals > self._retries or all(s.failures > self._retries for s in self._servers):
            raise given_up(server.url, self._retries, failure, self._group) from failure
        self._again.append(request)

    async def _leave(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._client.aclose()


def choose(servers: Sequence[Server], avoided: Server | None, now: float) -> Server | None:
    """The free server with the least to do; where another one works, `avoided` is none, even if that means to wait."""
    working = [server for server in servers if server is not avoided and not server.failures]
    free = [server for server in (working if avoided and working else servers) if server.is_free(now)]
    return min(free, key=lambda server: (server is avoided, server.in_flight), default=None)


def pause_after(failures: int) -> float:
    """Seconds until the next try after so many failures in a row; the jitter keeps clients from coming all at once."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30)
    return min(LONGEST_PAUSE_SECONDS, doubled * random.uniform(1.0, 1.25))


def given_up(url: str, retries: int, failure: TryAgain, group: str = "scorers.*") -> UserError:
    """What to say when the retries are used up."""
    return UserError(
        f"{url} still fails after {retries} retries: {failure}. What is written stays: rerun the same command to "
        f"resume once the server answers; for a server that needs longer raise {group}.timeout_s"
    )
