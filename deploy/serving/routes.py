"""The HTTP routes of a served judge: /v1, health, metrics, the page."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi import Path as InPath
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from deploy.ranking.tournament import single
from deploy.serving.page import page_and_policy
from deploy.serving.problems import CLIENT_GONE, Unavailable, answer_errors_with_problems
from deploy.serving.reward_schemas import (
    OpenRlhfRequest,
    OpenRlhfResponse,
    RankRequest,
    RankResponse,
    RewardRequest,
    RewardResponse,
    turns_of,
)
from deploy.serving.rewarding import check_count, openrlhf_rewards, ranked, rewards
from deploy.serving.schemas import (
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
from deploy.serving.service import Service
from eval.recalibration import IDENTITY

T = TypeVar("T")
JobId = Annotated[str, InPath(pattern="^[0-9a-f]{32}$")]
PROBLEMS = (400, 413, 422, 500, 503)


async def service_of(request: Request) -> Service:
    """The service that `create_app` put there; async, since FastAPI gives others a thread for each request."""
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(service_of)]
v1 = APIRouter(prefix="/v1")
about = APIRouter()


def create_app(service: Service, with_key: bool) -> FastAPI:
    """The routes of one service; `with_key` has the schema say that /v1 wants a key, which the middleware checks."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="Preference judge", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    problems: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem} for status in (*PROBLEMS, *([401] if with_key else []))
    }
    key = [Depends(HTTPBearer(auto_error=False))] if with_key else []
    app.include_router(v1, dependencies=key, responses=problems)
    app.include_router(about)
    answer_errors_with_problems(app)
    page, policy = page_and_policy()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"content-security-policy": policy, "cache-control": "no-cache"})

    return app


@about.get("/health", responses={503: {"model": Health}})
async def health(service: TheService, response: Response) -> Health:
    """Whether the judge takes work."""
    if service.state != "ready":
        response.status_code = 503
    return Health(state=service.state)


@about.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: TheService) -> Response:
    """What Prometheus reads."""
    return Response(generate_latest(service.traffic.registry), media_type=CONTENT_TYPE_LATEST)


@v1.get("/model")
async def model(service: TheService) -> Served:
    """Which judge this is, and what it takes."""
    return Served(
        model=service.model,
        kind="pointwise" if service.renderer.pointwise else "pairwise",
        labels=[*service.labels],
        computes_otherwise=service.computes_otherwise,
        max_tokens=service.max_tokens,
        recalibrated=service.recalibrate != IDENTITY,
        coverage=None if service.thresholds is None else service.coverage,
        max_conversations=service.settings.max_conversations,
        max_body_bytes=service.settings.max_body_bytes,
    )


@v1.post("/judge")
async def judge(service: TheService, body: JudgeRequest, request: Request) -> JudgeResponse:
    """Which response of each conversation people prefer."""
    with places(service, len(body.conversations), ", or a job to /v1/jobs"):
        results = await unless_gone(request, service.judge(body.conversations, body.shown))
    for result in results:
        if isinstance(result, Unjudged):
            raise HTTPException(500, f"conversation {result.id}: {result.error}")
    verdicts = [result for result in results if isinstance(result, Verdict)]
    return JudgeResponse(results=verdicts, model=service.model, request_id=request.scope["request_id"])


@v1.post("/reward")
async def reward(service: TheService, body: RewardRequest, request: Request) -> RewardResponse:
    """What the last message of each chat is worth, to a pointwise judge."""
    rows = [single(turns_of(chat.messages), str(place)) for place, chat in enumerate(body.conversations)]
    with places(service, len(rows)):
        found = await unless_gone(request, rewards(service, rows))
    return RewardResponse(rewards=found, model=service.model, request_id=request.scope["request_id"])


@v1.post("/rank")
async def rank(service: TheService, body: RankRequest, request: Request) -> RankResponse:
    """The order of several responses, with what each is worth."""
    with service.places(check_count(service, body)):
        results, asked = await unless_gone(request, ranked(service, body))
    order = sorted(range(len(results)), key=lambda place: results[place].rank)
    id = request.scope["request_id"]
    return RankResponse(results=results, order=order, comparisons=asked, model=service.model, request_id=id)


@v1.post("/openrlhf")
async def openrlhf(service: TheService, body: OpenRlhfRequest, request: Request) -> OpenRlhfResponse:
    """The rewards that OpenRLHF's trainer asks a remote reward model for."""
    with places(service, len(body.query)):
        found = await unless_gone(request, openrlhf_rewards(service, body))
    return OpenRlhfResponse(rewards=found, scores=found)


@v1.post("/jobs", status_code=202)
async def accept(service: TheService, body: JudgeRequest, response: Response) -> JobAccepted:
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


@v1.get("/jobs/{id}", responses={404: {"model": Problem}})
async def job(service: TheService, id: JobId, results: bool = True) -> JobState:
    """How far a job is, with the results so far unless `results=false`."""
    state = await asyncio.to_thread(service.jobs.state, id, service.model, results)
    if state is None:
        raise HTTPException(404, f"{service.model} has no job {id}")
    return state


def places(service: Service, count: int, otherwise: str = "") -> AbstractContextManager[None]:
    """Places in the queue for the conversations of one request. Raises `HTTPException` 422 where they are too many."""
    if count > (limit := service.settings.max_conversations):
        raise HTTPException(422, f"{count} conversations in one request: send at most {limit} at a time{otherwise}")
    return service.places(count)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. It is cancelled when the client hangs up, so that nobody waits for prompts of no use."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HTTPException(CLIENT_GONE, "the client has gone")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
