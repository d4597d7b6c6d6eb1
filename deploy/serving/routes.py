"""The HTTP routes of a served judge: /v1, health, metrics, the page; every error as problem details."""

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from deploy.serving.batching import Closed
from deploy.serving.gate import problem
from deploy.serving.schemas import (
    FieldProblem,
    Health,
    JobAccepted,
    JobState,
    JudgeRequest,
    JudgeResponse,
    Problem,
    Served,
    Unjudged,
    Verdict,
)
from deploy.serving.service import Service, Unavailable
from eval.recalibration import IDENTITY

PAGE = Path(__file__).with_name("page.html")
GONE = 499  # nginx's word for a client that did not wait; it is only counted
T = TypeVar("T")
JobId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]


def create_app(service: Service, with_key: bool) -> FastAPI:
    """The routes of one service; `with_key` has the schema say that they want a key."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="Preference judge", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(judging_routes(service, [Depends(HTTPBearer(auto_error=False))] if with_key else []))
    add_problems(app)
    schema = app.openapi
    app.openapi = lambda: with_problem_type(schema())  # type: ignore[method-assign]
    page, policy = page_and_policy()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy, "cache-control": "no-cache"})

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Whether the judge takes work."""
        if service.state != "ready":
            response.status_code = 503
        return Health(state=service.state)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """What Prometheus reads."""
        return Response(generate_latest(service.traffic.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def judging_routes(service: Service, dependencies: Sequence[Any]) -> APIRouter:
    """What lies below /v1: the judge, and jobs."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (400, 413, 422, 500, 503, *([401] if dependencies else []))
    }
    router = APIRouter(prefix="/v1", dependencies=dependencies, responses=refusals)

    @router.get("/model")
    async def model() -> Served:
        """Which judge this is, and what it takes."""
        return Served(
            model=service.model,
            computes_otherwise=service.computes_otherwise,
            max_tokens=service.max_tokens,
            recalibrated=service.recalibrate != IDENTITY,
            max_conversations=service.settings.max_conversations,
            max_body_bytes=service.settings.max_body_bytes,
        )

    @router.post("/judge")
    async def judge(body: JudgeRequest, request: Request) -> JudgeResponse:
        """Which response of each conversation people prefer."""
        if len(body.conversations) > service.settings.max_conversations:
            raise HTTPException(
                422,
                f"{len(body.conversations)} conversations in one request: send at most "
                f"{service.settings.max_conversations} at a time, or a job to /v1/jobs",
            )
        with service.admitted(len(body.conversations)):
            results = await unless_gone(request, service.judge(body.conversations, body.shown))
        for result in results:
            if isinstance(result, Unjudged):
                raise HTTPException(500, f"conversation {result.id}: {result.error}")
        verdicts = [result for result in results if isinstance(result, Verdict)]
        return JudgeResponse(results=verdicts, model=service.model, request_id=request.scope["request_id"])

    @router.post("/jobs", status_code=202)
    async def accept(body: JudgeRequest, response: Response) -> JobAccepted:
        """Judge many conversations in the background. Once this has answered, no crash loses them."""
        service.check_open()
        if service.jobs.full:
            raise Unavailable(f"{len(service.jobs.waiting)} jobs wait already", 60)
        try:
            id = await service.jobs.accept(body)
        except OSError as error:
            raise Unavailable(f"the job could not be stored: {error.strerror}", 60) from error
        response.headers["location"] = f"/v1/jobs/{id}"
        return JobAccepted(id=id, conversations=len(body.conversations))

    @router.get("/jobs/{id}", responses={404: {"model": Problem}})
    async def job(id: JobId, results: bool = True) -> JobState:
        """How far a job is, with the results so far unless `results=false`."""
        state = await asyncio.to_thread(service.jobs.state, id, service.model, results)
        if state is None:
            raise HTTPException(404, f"{service.model} has no job {id}")
        return state

    return router


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives; it is cancelled when the client hangs up, so that prompts of nobody do not hold others up."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(GONE, "the client has gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def add_problems(app: FastAPI) -> None:
    """Have every error answered with problem details."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), request.scope["request_id"], error.headers)

    @app.exception_handler(RequestValidationError)
    async def unfitting(request: Request, error: RequestValidationError) -> Response:
        errors = [
            FieldProblem(at=place(e["loc"]), problem=e["msg"].removeprefix("Value error, ")) for e in error.errors()
        ]
        detail = f"{errors[0].at}: {errors[0].problem}" + (f", and {len(errors) - 1} more" if errors[1:] else "")
        return problem(422, detail, request.scope["request_id"], errors=errors)

    @app.exception_handler(Unavailable)
    async def unavailable(request: Request, error: Unavailable) -> Response:
        return problem(503, str(error), request.scope["request_id"], {"retry-after": str(error.seconds)})

    @app.exception_handler(Closed)
    async def closed(request: Request, error: Closed) -> Response:
        return problem(503, f"the judge stopped: {error}", request.scope["request_id"], {"retry-after": "10"})

    @app.exception_handler(Exception)  # a defect of ours: its traceback goes to the log
    async def broken(request: Request, error: Exception) -> Response:
        return problem(500, "this is a defect of the server; its log has the reason", request.scope["request_id"])


def place(location: Sequence[str | int]) -> str:
    """("body", "conversations", 0, "prompt") -> conversations[0].prompt."""
    keys = location[1:] if location[0] == "body" else location
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "body"


def with_problem_type(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema, in which problems have the media type that they are sent with."""
    for path in schema["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
                    content["application/problem+json"] = content.pop("application/json")
    return schema


def page_and_policy() -> tuple[str, str]:
    """The page, and a policy under which its own script and style run, nothing else, and only this server is asked."""
    page = PAGE.read_text(encoding="utf-8")

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts
        )

    rules = [
        "default-src 'none'",
        f"script-src {hashes('script')}",
        f"style-src {hashes('style')}",
        "connect-src 'self'",
    ]
    rules += ["img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"]
    return page, "; ".join(rules)
