"""Errors as RFC 9457 problem details: what is wrong, and what to do about it."""

from __future__ import annotations

import http
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from rediffuse.errors import RediffuseError, did_you_mean
from rediffuse.serving.logs import current

MEDIA_TYPE = "application/problem+json"
# Of responses that may contain users' data: caches must not store them, and browsers must not sniff their type.
PRIVATE_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
log = logging.getLogger("rediffuse.serving")


class FieldProblem(BaseModel):
    field: str = Field(description="Path of the field in the request, for example body.k.")
    message: str


class ProblemDetails(BaseModel):
    """An error, as RFC 9457 defines it."""

    type: str = Field(examples=["urn:rediffuse:invalid-request"])
    title: str
    status: int
    detail: str | None = None
    remedy: str | None = Field(None, description="What to do about it.")
    errors: list[FieldProblem] | None = Field(None, description="One entry per invalid field.")
    request_id: str | None = Field(None, description="The id of the request in the log, also in X-Request-ID.")


class Problem(Exception):
    """An error that ends a request with problem details.

    Args:
        status: the HTTP status.
        kind: the last part of ``type``, for example "unknown-model".
        detail: what is wrong.
        remedy: what to do about it.
        headers: extra headers of the response.
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
    """Build the response of a problem."""
    content: dict[str, Any] = {
        "type": f"urn:rediffuse:{kind}",
        "title": http.HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "remedy": remedy,
        "errors": errors,
    }
    if (request := current.get()) is not None:
        content["request_id"] = request.id
        headers = (headers or {}) | {"X-Request-ID": request.id}
    content = {name: value for name, value in content.items() if value is not None}
    return Response(to_json(content), status, PRIVATE_HEADERS | (headers or {}), media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of an application with problem details."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> Response:
        return problem_response(error.status, error.kind, error.detail, error.remedy, headers=error.headers)

    @app.exception_handler(RediffuseError)
    async def invalid_input(request: Request, error: RediffuseError) -> Response:
        return problem_response(422, "invalid-request", error.problem, error.remedy)

    @app.exception_handler(RequestValidationError)
    async def invalid_fields(request: Request, error: RequestValidationError) -> Response:
        # The response leaves out the values that were sent: they may be large or private.
        errors = [
            {
                "field": ".".join(map(str, one["loc"]))[:200],
                "message": _message(request, one)[:500],
            }
            for one in error.errors()[:20]
        ]
        return problem_response(
            422, "invalid-request", "The request is invalid.", "See /openapi.json for the format of requests.", errors
        )

    def _message(request: Request, one: dict[str, Any]) -> str:
        if one["type"] == "extra_forbidden" and len(one["loc"]) == 2:
            return f"There is no such field. {did_you_mean(one['loc'][1], _fields(request))}"
        return str(one["msg"]).removeprefix("Value error, ")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        kind = http.HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
        headers = dict(error.headers) if error.headers else None
        return problem_response(error.status_code, kind, str(error.detail), headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(500, "internal-error", "The server failed to answer; its log has the details.")


def _fields(request: Request) -> list[str]:
    """Names of the fields in the body that the route of a request expects."""
    body = getattr(request.scope.get("route"), "body_field", None)
    kind = None if body is None else body.field_info.annotation
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []
