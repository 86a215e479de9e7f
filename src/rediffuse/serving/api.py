"""The routes of the HTTP interface: what is asked, checked by `schemas`, goes to the service."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPBearer
from pydantic_core import to_json

from rediffuse.serving import metadata, schemas
from rediffuse.serving.problems import MEDIA_TYPE, PRIVATE
from rediffuse.serving.service import Service

bearer = HTTPBearer(auto_error=False, description="Only where the service was started with a token.")
Text = Annotated[str, Query(max_length=200)]
Limit = Annotated[int, Query(ge=1, le=200)]


def _problem(description: str) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/ProblemDetails"}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": reference}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The request is no JSON."),
    401: _problem("The token is missing or wrong."),
    404: _problem("No such run, or person."),
    413: _problem("The request is too large."),
    422: _problem("The request cannot be used; the fields that are wrong are named."),
    503: _problem("Overloaded, or no answer in time; Retry-After says when to try again."),
}


def service_of(request: Request) -> Service:
    """The application's service."""
    return request.app.state.service


At = Annotated[Service, Depends(service_of)]
# The token is looked at by `middleware.AuthMiddleware`, before a body is read; here it is described.
api = APIRouter(prefix="/v1", dependencies=[Depends(bearer)], responses=PROBLEMS)


def _json(content: dict[str, Any]) -> Response:
    # What we made ourselves is not checked once more on its way out; tests hold it to its schema.
    content_bytes = to_json(content, inf_nan_mode="null")
    return Response(content_bytes, headers=PRIVATE, media_type="application/json")


@api.post("/recommend", response_model=schemas.RecommendResponse, summary="The best items for people")
async def recommend(request: schemas.RecommendRequest, service: At) -> Response:
    """For known people by id, or for anyone by their history."""
    return _json(await service.recommend(request))


@api.post("/similar", response_model=schemas.SimilarResponse, summary="Items like others")
async def similar(request: schemas.SimilarRequest, service: At) -> Response:
    """By the cosine of the model's item vectors; models without such vectors refuse."""
    return _json(await service.run_in_worker(service.similar, request))


@api.post("/denoise", response_model=schemas.DenoiseResponse, summary="The walk from noise to items")
async def denoise(request: schemas.DenoiseRequest, service: At) -> Response:
    """Every step of one answer of a diffusion model, on the item map. No steps: there is nothing to denoise."""
    return _json(await service.run_in_worker(service.denoise, request))


@api.get("/models", response_model=schemas.RunsResponse, summary="Runs that are served")
def models(service: At) -> Response:
    """The first is the default of requests that name none."""
    return _json({"models": [metadata.facts(run) for run in service.runs.values()]})


@api.get("/models/{name}/items", response_model=schemas.ItemsResponse, summary="Items by title")
def items(name: str, service: At, q: Text = "", limit: Limit = 20) -> Response:
    """Items whose title (or id, without titles) contains q; those that begin with it first, then the most frequent."""
    return _json(metadata.items(service.run(name), q, limit))


@api.get("/models/{name}/users", response_model=schemas.UsersResponse, summary="People by id")
def users(name: str, service: At, q: Text = "", limit: Limit = 20) -> Response:
    """Known people whose id begins with q."""
    return _json(metadata.users(service.run(name), q, limit))


@api.get("/models/{name}/history", response_model=schemas.ItemsResponse, summary="What a person did")
def history(name: str, user: Text, service: At) -> Response:
    """Oldest first."""
    return _json(metadata.history(service.run(name), user))


@api.get("/models/{name}/map", response_model=schemas.MapResponse, summary="Items in two dimensions")
def item_map(name: str, service: At, limit: Annotated[int, Query(ge=1, le=20_000)] = 4000) -> Response:
    """Principal components of the item vectors; the same for every request."""
    return _json(metadata.item_map(service.run(name), limit))


@api.get("/models/{name}/training", response_model=schemas.TrainingResponse, summary="How a run was trained")
def training(name: str, service: At) -> Response:
    """Curves, metrics, slices and the model card."""
    return _json(metadata.training(service.run(name)))
