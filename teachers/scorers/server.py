"""The scorer for engines that run elsewhere: vLLM servers behind URLs, asked over HTTP.

One plain loop decides what is sent where, between the steps of an event loop that only waits for answers. Each server
has a number of slots and takes the next request when one is free, so a slow one gets less. A server that fails rests,
twice as long each time, then a single request probes it before the others follow (a circuit breaker); meanwhile its
requests move to servers that work.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import mktime_tz, parsedate_tz
from itertools import islice
from string import Formatter
from typing import Any

import httpx
import numpy as np

from core.errors import UserError
from core.scoring import check_length
from teachers.scorers.config import ServerConfig

log = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
CONNECT_SECONDS = 30.0
LOWEST_LOGPROB = -9999.0  # vLLM's word for -inf, which JSON cannot hold
RUNNERS = {"classify": "pooling", "label_tokens": "generate"}


class ServerScorer:
    """Scores with the vLLM servers at `config.urls`, all of the same model.

    With no `label_ids` a score head gives raw logits; else it is the log-probabilities of
    `label_ids` as the next token, over the whole vocabulary. `tokens_cached` is what the servers tell of their prefix
    caches: nothing unless they run with `--enable-prompt-tokens-details`, and vLLM 0.32 counts a request's last prompt
    alone.
    """

    def __init__(
        self,
        config: ServerConfig,
        max_tokens: int,
        fold: int | None = None,
        label_ids: Sequence[int] | None = None,
        outputs: int | None = None,
    ) -> None:
        """Ask each server what it serves, with the same patience as later.

        `max_tokens` is the longest prompt, `fold` what {fold} stands for in the URLs, `outputs` how many logits a
        prompt must get (None: as many as the first gets). Raises `UserError` for settings, URLs and servers that do
        not fit.
        """
        self.server, self.max_tokens = config, max_tokens
        self.method = "classify" if label_ids is None else "label_tokens"
        self.label_ids = None if label_ids is None else list(label_ids)
        self.outputs = outputs if label_ids is None else len(label_ids)
        self.tokens_cached = 0
        self.urls = _urls(config.urls, fold)
        self._options: dict[str, Any] = {
            "headers": _headers(config.api_key_variable),
            "timeout": httpx.Timeout(config.timeout_s, connect=min(CONNECT_SECONDS, config.timeout_s)),
            "limits": httpx.Limits(max_connections=None),  # the slots are the limit
            "verify": httpx.create_ssl_context(),  # reading the certificates takes longer than most requests
        }
        self._seen_raw: set[str] = set()
        # The token that is asked for has to fit in as well.
        self.model = _common_model(
            {url: self._cards(url) for url in self.urls}, config.model, max_tokens + (label_ids is not None)
        )

    def stream(self, prompts: Iterable[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
        """As `core.scoring.Scorer` says.

        Raises `UserError` for prompts of no or too many tokens, for a request that a server refuses and for answers
        that are no logits, at once; where servers fail or do not answer, when the retries are used up.
        """
        fresh, again = self._requests(prompts), list[_Request]()
        servers = [_Server(url, self.server.requests_in_flight) for url in self.urls]
        slots = sum(server.slots for server in servers)
        running: dict[asyncio.Task[np.ndarray], tuple[_Request, _Server, bool]] = {}
        loop = asyncio.new_event_loop()
        client = httpx.AsyncClient(**self._options)

        def send(request: _Request, server: _Server) -> None:
            task = loop.create_task(self._ask(client, server.url, request.prompts))
            running[task] = (request, server, server.begin())
            loop.run_until_complete(asyncio.sleep(0))  # it leaves while further prompts are drawn

        try:
            while True:
                now = time.monotonic()
                for request in [*again]:
                    if server := _choose(servers, request.refused_by, now):
                        again.remove(request)
                        send(request, server)
                while len(running) + len(again) < slots and (server := _choose(servers, None, now)):
                    if (upcoming := next(fresh, None)) is None:
                        break
                    send(upcoming, server)
                if not running and not again:
                    return
                rests = min((s.rests_until - now for s in servers if s.rests_until > now), default=None)
                if running:
                    waits = asyncio.wait(running, timeout=rests, return_when=asyncio.FIRST_COMPLETED)
                    done, _ = loop.run_until_complete(waits)
                else:
                    assert rests is not None, "requests wait while a server is free"
                    loop.run_until_complete(asyncio.sleep(rests))
                    continue
                for task in sorted(done, key=lambda task: task.exception() is not None):  # finished work first
                    request, server, probe = running.pop(task)
                    try:
                        answers = task.result()
                    except _TryAgain as failure:
                        server.end(probe, failure)
                        request.refused_by = server
                        request.refusals += not probe  # that a failing server still fails is no fault of the request
                        if request.refusals > self.server.retries or all(
                            s.failures > self.server.retries for s in servers
                        ):
                            raise self._given_up(server.url, failure) from failure
                        again.append(request)
                    else:
                        server.end(probe, None)
                        yield from zip(request.positions, answers, strict=True)
        finally:
            loop.run_until_complete(_leave(client, running))
            loop.close()

    def _requests(self, prompts: Iterable[Sequence[int]]) -> Iterator["_Request"]:
        waiting = enumerate(prompts)
        while pool := list(islice(waiting, self.server.prompts_per_request)):
            for position, prompt in pool:
                check_length(position, prompt, self.max_tokens)
            yield _Request([position for position, _ in pool], [list(prompt) for _, prompt in pool])

    async def _ask(self, client: httpx.AsyncClient, url: str, prompts: list[list[int]]) -> np.ndarray:
        path, body = "/classify", {"model": self.model, "input": prompts, "use_activation": False}
        if self.label_ids is not None:
            path, body = "/v1/completions", {"model": self.model, "prompt": prompts, "max_tokens": 1, "temperature": 0}
            # vLLM returns the labels and, at place 0, the sampled token; ids for names, since two may look the same.
            body |= {"logprobs": len(self.label_ids), "logprob_token_ids": self.label_ids}
            body |= {"return_tokens_as_token_ids": True}
        with _transport_errors():
            response = await client.post(url + path, json=body)
        reply = _reply(response, f"; teacher.method={self.method} needs vllm serve --runner {RUNNERS[self.method]}")
        try:
            if self.label_ids is None:
                rows = {item["index"]: item["probs"] for item in reply["data"]}
            else:
                names = [f"token_id:{token}" for token in self.label_ids]
                found = {choice["index"]: choice["logprobs"]["top_logprobs"][0] for choice in reply["choices"]}
                rows = {index: [top[name] for name in names] for index, top in found.items()}
            answers = np.array([rows[index] for index in range(len(prompts))], np.float32)
            details = (reply.get("usage") or {}).get("prompt_tokens_details") or {}
            self.tokens_cached += details.get("cached_tokens") or 0
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{url}{path} did not answer as vLLM >= 0.32 does ({error!r}): is it another server, or an older one?"
            ) from error
        self._check(answers, len(rows), url + path)
        return answers

    def _check(self, answers: np.ndarray, rows: int, url: str) -> None:
        """Raise `UserError` unless `answers` [prompts, outputs], of an answer with `rows` rows, are raw logits."""
        if rows != len(answers) or answers.ndim != 2 or self.outputs not in (None, answers.shape[1]):
            raise UserError(
                f"{url} gave {rows} rows for {len(answers)} prompts, of shape {list(answers.shape[1:])}, expected "
                f"{self.outputs or 'some'} outputs each: does it serve the judge that you mean?"
            )
        self.outputs = answers.shape[1]
        if not np.isfinite(answers).all() or (self.label_ids is not None and answers.min() <= LOWEST_LOGPROB):
            raise UserError(f"{url} gave logits that are not finite: serve the model with vllm serve --dtype bfloat16")
        if self.label_ids is not None:
            if np.logaddexp.reduce(answers, axis=1).max() > 0.01:
                raise UserError(
                    f"{url} gave {answers[0].tolist()}, which are no log-probabilities: leave out --logprobs-mode"
                )
        elif url not in self._seen_raw:
            # A server that does not know use_activation would answer with probabilities without a word.
            if self.outputs > 1 and (answers >= 0).all() and np.abs(answers.sum(1) - 1).max() < 1e-5:
                raise UserError(
                    f"{url} gave probabilities, such as {answers[0].tolist()}, and was asked for logits: it does not "
                    "know use_activation; run vLLM >= 0.32 there"
                )
            self._seen_raw.add(url)

    def _cards(self, url: str) -> dict[str, dict[str, Any]]:
        """The cards of the models that the server at `url` offers, by name."""
        with httpx.Client(**self._options) as client:
            for attempt in range(self.server.retries + 1):
                try:
                    with _transport_errors():
                        response = client.get(f"{url}/v1/models")
                    return {card["id"]: card for card in _reply(response)["data"]}
                except (KeyError, TypeError) as error:
                    raise UserError(f"{url}/v1/models is no list of models: give the URL of vllm serve") from error
                except _TryAgain as failure:
                    if attempt == self.server.retries:
                        raise self._given_up(url, failure) from failure
                    pause = max(_pause(attempt + 1), failure.after)
                    log.warning("%s: %s; asking again in %.1f s", url, failure, pause)
                    time.sleep(pause)
        raise AssertionError(f"scorer.retries={self.server.retries}")

    def _given_up(self, url: str, failure: "_TryAgain") -> UserError:
        return UserError(
            f"{url} still fails after {self.server.retries} retries: {failure}. What is written stays: the same "
            "command goes on when the server answers; for a server that needs longer raise scorer.timeout_s"
        )


class _TryAgain(Exception):
    """A failure that may pass. `after`: the seconds that the server wants to be left alone."""

    def __init__(self, message: str, after: float = 0.0) -> None:
        super().__init__(message)
        self.after = after


@dataclass(eq=False, slots=True)
class _Server:
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

    def end(self, probe: bool, failure: _TryAgain | None) -> None:
        """Count a request out. Of those that were under way when the server began to fail, only the first tells."""
        self.in_flight -= 1
        news, now = probe or not self.failures, time.monotonic()
        if probe:
            self.probed = False
        if failure is not None:
            self.failures += news
            pause = max(_pause(self.failures) if news else 0.0, failure.after)
            self.rests_until = max(self.rests_until, now + pause)
            if news:
                log.warning("%s: %s; asking again in %.1f s", self.url, failure, pause)
        elif probe:
            self.failures = 0


@dataclass(eq=False, slots=True)
class _Request:
    positions: list[int]
    prompts: list[list[int]]
    refusals: int = 0
    refused_by: _Server | None = None


async def _leave(client: httpx.AsyncClient, tasks: Collection[asyncio.Task[Any]]) -> None:
    """Hang up: vLLM drops the work of a connection that is closed."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()


def _choose(servers: Sequence[_Server], avoided: _Server | None, now: float) -> _Server | None:
    """The free server with the least to do; where another one works, `avoided` is none, even if that means to wait."""
    working = [server for server in servers if server is not avoided and not server.failures]
    free = [server for server in (working if avoided and working else servers) if server.is_free(now)]
    return min(free, key=lambda server: (server is avoided, server.in_flight), default=None)


def _pause(failures: int) -> float:
    """Seconds until the next try after so many failures in a row; the jitter keeps clients from coming all at once."""
    doubled = FIRST_PAUSE_SECONDS * 2.0 ** min(failures - 1, 30)
    return min(LONGEST_PAUSE_SECONDS, doubled * random.uniform(1.0, 1.25))


@contextmanager
def _transport_errors() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:  # time-outs, refused and broken connections
        raise _TryAgain(f"{type(error).__name__} {error}".strip()) from error


def _reply(response: httpx.Response, not_found: str = "") -> Any:
    """The JSON of an answer. Raises `_TryAgain` for 429 and 5xx, `UserError` for whatever else is not 200."""
    status, url = response.status_code, response.url
    if status != httpx.codes.OK:
        try:
            message = response.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = response.text[:500]
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise _TryAgain(f"status {status}, {message}", _seconds(response.headers.get("retry-after", "")))
        raise UserError(f"{url} answered {status}: {message}{not_found if status == httpx.codes.NOT_FOUND else ''}")
    try:
        return response.json()
    except ValueError as error:
        raise UserError(f"{url} answered with {response.text[:100]!r}, not JSON: is it vLLM?") from error


def _seconds(retry_after: str) -> float:
    """A Retry-After header, seconds or a date (RFC 9110, 10.2.3), in seconds from now; 0 for what is neither."""
    if retry_after.isdecimal():
        return float(retry_after)
    date = parsedate_tz(retry_after)
    return 0.0 if date is None else max(0.0, mktime_tz(date) - time.time())


def _urls(templates: Sequence[str], fold: int | None) -> list[str]:
    """The servers' addresses, {fold} filled in, without a trailing slash or /v1, which clients of OpenAI write."""
    if not templates:
        raise UserError("scorer.urls=[]: give the URL of each vLLM server, such as [http://localhost:8000]")
    urls: list[str] = []
    for template in templates:
        try:
            holes = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
            if unknown := sorted(holes - {"fold"}):
                raise UserError(f"unknown {{{unknown[0]}}}")
            if holes and fold is None:
                raise UserError("this scorer belongs to no fold")
            url = template.format(fold=fold).rstrip("/").removesuffix("/v1")
            parsed = httpx.URL(url)
            if parsed.scheme not in ("http", "https") or not parsed.host:
                raise UserError("no http:// or https:// address")
        except (ValueError, httpx.InvalidURL) as error:
            raise UserError(
                f"scorer.urls: {template!r}: {error}; write http://host:port, with {{fold}} where each fold's "
                "teacher has a server of its own"
            ) from error
        if url in urls:
            raise UserError(f"scorer.urls: {url} is there twice; raise scorer.requests_in_flight")
        urls.append(url)
    return urls


def _headers(api_key_variable: str | None) -> dict[str, str]:
    if api_key_variable is None:
        return {}
    key = os.environ.get(api_key_variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise UserError(f"scorer.api_key_variable={api_key_variable}: the environment has no such key; set it, or null")
    return {"Authorization": f"Bearer {key}"}


def _common_model(cards: dict[str, dict[str, dict[str, Any]]], wanted: str | None, tokens: int) -> str:
    """The name of the model that all servers are asked for; `cards` by URL and name.

    Raises `UserError` unless each serves it, with room for `tokens` tokens.
    """
    chosen: dict[str, str] = {}
    for url, served in cards.items():
        if wanted is None and len(served) != 1:
            raise UserError(f"{url} serves {sorted(served)}: choose one with scorer.model")
        chosen[url] = name = next(iter(served)) if wanted is None else wanted
        if name not in served:
            raise UserError(f"scorer.model={name}: {url} serves {sorted(served)}")
        room = served[name].get("max_model_len")
        if room is not None and room < tokens:
            raise UserError(
                f"{url} takes {room} tokens, {tokens} are needed: start it with vllm serve --max-model-len {tokens}, "
                "or lower prompt.max_tokens"
            )
    if len(set(chosen.values())) > 1:
        raise UserError(f"the servers serve different models, {chosen}: give servers of one model")
    return name
