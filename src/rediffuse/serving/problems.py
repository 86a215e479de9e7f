"""Errors as RFC 9457 problem details: what is wrong, in words, and how to mend it."""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from rediffuse.errors import RediffuseError

MEDIA_TYPE = "application/problem+json"
# Of all answers that are about somebody: kept nowhere on the way, and nothing but what they say they are.
PRIVATE = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
log = logging.getLogger("rediffuse.serving")


class FieldProblem(BaseModel):
    field: str = Field(description="Where in the request, for example body.k.")
    message: str


class ProblemDetails(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:rediffuse:invalid-request"])
    title: str
    status: int
    detail: str | None = None
    remedy: str | None = Field(None, description="What to do about it.")
    errors: list[FieldProblem] | None = Field(None, description="One for each field that cannot be used.")


class Problem(Exception):
    """Ends a request with a problem.

    Args:
        status: of HTTP.
        kind: last part of its ``type``, for example "unknown-model".
        detail: what was found.
        remedy: what to do about it.
        headers: further ones of the answer.
    """

    def __init__(
        self, status: int, kind: str, detail: str, remedy: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.remedy, self.headers = status, kind, detail, remedy, headers


def problem_response(
    status: int,
    kind: str,
    detail: str | None = None,
    remedy: str | None = None,
    errors: list[dict[str, str]] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """A problem as a response."""
    content: dict[str, Any] = {
        "type": f"urn:rediffuse:{kind}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "remedy": remedy,
        "errors": errors,
    }
    content = {name: value for name, value in content.items() if value is not None}
    return Response(to_json(content), status, PRIVATE | (headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have every error of an application answered by a problem."""

    @app.exception_handler(Problem)
    async def ours(request: Request, error: Problem) -> Response:
        return problem_response(error.status, error.kind, error.detail, error.remedy, headers=error.headers)

    @app.exception_handler(RediffuseError)
    async def mendable(request: Request, error: RediffuseError) -> Response:
        return problem_response(422, "invalid-request", error.problem, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        # What was sent is not sent back: it may be large, and is none of a log's business.
        errors = [
            {"field": ".".join(map(str, one["loc"]))[:200], "message": str(one["msg"])[:500]}
            for one in error.errors()[:20]
        ]
        remedy = "The request's form is described at /openapi.json."
        return problem_response(422, "invalid-request", "The request cannot be used.", remedy, errors)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        kind = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        headers = dict(error.headers) if error.headers else None
        return problem_response(error.status_code, kind, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(500, "internal-error", "The server failed to answer; its log says why.")
