"""The ASGI middleware around all routes: keys, limits, request ids, and what Prometheus is told of the traffic."""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response

from core.prompts import Rendered
from deploy.serving.problems import problem

log = logging.getLogger(__name__)
GUARDED = "/v1/"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SECURITY = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "x-frame-options": "DENY"}
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Traffic:
    """The counters of one server."""

    def __init__(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """`gauges`: name -> (description, function that reads the present value)."""
        self.registry = CollectorRegistry()
        registry: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("judge_requests", "HTTP requests", ["route", "status"], **registry)
        self._seconds = Histogram("judge_request_seconds", "of a request", ["route"], buckets=SECONDS, **registry)
        self._conversations = Counter("judge_conversations", "conversations judged, those of jobs included", **registry)
        self._truncated = Counter("judge_truncated_conversations", "of them, those that were shortened", **registry)
        self._tokens = Counter("judge_prompt_tokens", "tokens of the prompts scored", **registry)
        for name, (description, value) in gauges.items():
            Gauge(name, description, **registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def judged(self, prompts: Sequence[Rendered], orders: int) -> None:
        """Count conversations: `prompts` has each in `orders` orders."""
        self._conversations.inc(len(prompts) / orders)
        self._truncated.inc(sum(prompt.truncated for prompt in prompts) / orders)
        self._tokens.inc(sum(len(prompt.ids) for prompt in prompts))


class Middleware:
    """Gives each request an id, asks for the key, limits bodies, and counts.

    The id is the client's where that is harmless. The key is asked for before anything is read. A body's bytes are
    counted while they arrive, whatever Content-Length says.
    """

    def __init__(self, app: App, traffic: Traffic, api_key: str | None, max_body_bytes: int) -> None:
        self.app, self.traffic, self.max_body_bytes = app, traffic, max_body_bytes
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, headers, status = time.perf_counter(), Headers(scope=scope), 500
        request_id = scope["request_id"] = request_id_of(headers)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(SECURITY | {"x-request-id": request_id})
            await send(message)

        try:
            if refusal := self._refusal(scope["path"], headers, request_id):
                await refusal(scope, receive, answer)
            else:
                await self.app(scope, self._counted(receive), answer)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self.traffic.answered(route, status, seconds)
            if route.startswith(GUARDED):
                log.info("%s %s %d in %.0f ms, request %s", scope["method"], route, status, 1000 * seconds, request_id)

    def _refusal(self, path: str, headers: Headers, request_id: str) -> Response | None:
        """The answer to a request without the key, or with too large a body; None for all others."""
        if path.startswith(GUARDED) and not self._has_key(headers):
            detail = "send the server's key as Authorization: Bearer <key>"
            return problem(401, detail, request_id, {"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            return problem(413, self._too_large, request_id, {"connection": "close"})
        return None

    def _has_key(self, headers: Headers) -> bool:
        if self._expected is None:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        return hmac.compare_digest(f"{scheme.capitalize()} {key.strip()}".encode("latin-1"), self._expected)

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self.max_body_bytes} bytes: send fewer conversations at a time"

    def _counted(self, receive: Receive) -> Receive:
        """`receive`, until a body is too large."""
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                raise HTTPException(413, self._too_large, {"connection": "close"})
            return message

        return counted


def request_id_of(headers: Headers) -> str:
    """The client's own id where it can stand in a log, else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
