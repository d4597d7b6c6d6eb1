"""Errors over HTTP: each is answered with problem details (RFC 9457)."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deploy.serving.batching import Closed
from deploy.serving.schemas import FieldProblem, Problem

CLIENT_GONE = 499  # nginx's code for a client that did not wait; it is only counted


class Unavailable(Exception):
    """The service cannot take this now. `seconds`: when to try again."""

    def __init__(self, message: str, seconds: int = 1) -> None:
        super().__init__(message)
        self.seconds = seconds


def problem(
    status: int,
    detail: str,
    request_id: str,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldProblem] = (),
) -> Response:
    """An answer with problem details."""
    title = "Client gone" if status == CLIENT_GONE else HTTPStatus(status).phrase
    body = Problem(title=title, status=status, detail=detail, request_id=request_id, errors=list(errors))
    return Response(body.model_dump_json(), status, headers, "application/problem+json")


def answer_errors_with_problems(app: FastAPI) -> None:
    """Have every error of the application's routes answered with problem details, and its schema say so."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), request.scope["request_id"], error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
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

    @app.exception_handler(Exception)  # a bug of ours: its traceback goes to the log
    async def broken(request: Request, error: Exception) -> Response:
        return problem(500, "this is a bug in the server; see its log", request.scope["request_id"])

    schema = app.openapi
    app.openapi = lambda: with_problem_type(schema())  # type: ignore[method-assign]


def place(location: Sequence[str | int]) -> str:
    """("body", "conversations", 0, "prompt") -> conversations[0].prompt."""
    keys = location[1:] if location[0] == "body" else location
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".") or "body"


def with_problem_type(schema: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema, with problems under the media type that they are sent with."""
    for path in schema["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema", {}).get("$ref", "").endswith("/Problem"):
                    content["application/problem+json"] = content.pop("application/json")
    return schema
