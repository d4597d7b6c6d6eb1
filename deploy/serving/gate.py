"""Around the routes: who may come in, with how much, under which id; and what Prometheus is told of it."""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response

from core.prompts import Rendered
from deploy.serving.schemas import FieldProblem, Problem

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
        """`gauges`: what to read when asked, as name -> (description, how)."""
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("judge_requests", "HTTP requests", ["route", "status"], **common)
        self._seconds = Histogram("judge_request_seconds", "of a request", ["route"], buckets=SECONDS, **common)
        self._conversations = Counter("judge_conversations", "conversations judged, those of jobs included", **common)
        self._truncated = Counter("judge_truncated_conversations", "of them, those that were shortened", **common)
        self._tokens = Counter("judge_prompt_tokens", "tokens of the prompts scored", **common)
        for name, (description, value) in gauges.items():
            Gauge(name, description, **common).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def judged(self, prompts: Sequence[Rendered], orders: int) -> None:
        """`prompts` of whole conversations, `orders` of each."""
        self._conversations.inc(len(prompts) / orders)
        self._truncated.inc(sum(prompt.truncated for prompt in prompts) / orders)
        self._tokens.inc(sum(len(prompt.ids) for prompt in prompts))


class Gate:
    """ASGI middleware around the whole application.

    Gives each request an id, its client's where that is harmless; asks for the key before anything is read; counts a
    body's bytes while they arrive, whatever Content-Length says.
    """

    def __init__(self, app: App, traffic: Traffic, api_key: str | None, max_body_bytes: int) -> None:
        self.app, self.traffic, self.max_body_bytes = app, traffic, max_body_bytes
        self._expected = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, headers, status = time.perf_counter(), Headers(scope=scope), 500
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope["request_id"] = request_id

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
        if self._expected is not None and path.startswith(GUARDED):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if not hmac.compare_digest(f"{scheme.capitalize()} {key.strip()}".encode("latin-1"), self._expected):
                told = {"www-authenticate": "Bearer"}
                return problem(401, "send the server's key as Authorization: Bearer <key>", request_id, told)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body_bytes:
            return problem(413, self._too_large, request_id, {"connection": "close"})
        return None

    @property
    def _too_large(self) -> str:
        return f"the body is larger than {self.max_body_bytes} bytes: send fewer conversations at a time"

    def _counted(self, receive: Receive) -> Receive:
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.max_body_bytes:
                raise HTTPException(413, self._too_large, {"connection": "close"})
            return message

        return counted


def problem(
    status: int,
    detail: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldProblem] = (),
) -> Response:
    """An answer with problem details (RFC 9457)."""
    title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Client gone"
    body = Problem(title=title, status=status, detail=detail, request_id=request_id, errors=list(errors))
    return Response(body.model_dump_json(), status, headers, "application/problem+json")
