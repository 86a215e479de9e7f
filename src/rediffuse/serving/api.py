"""The routes under ``/v1``. `schemas` validates a request, `service` and `metadata` compute the response."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPBearer
from pydantic_core import to_json

from rediffuse.serving import metadata, schemas
from rediffuse.serving.problems import MEDIA_TYPE, PRIVATE_HEADERS
from rediffuse.serving.service import Service

bearer = HTTPBearer(auto_error=False, description="Required only if the service was started with a token.")
# The server limits the length of addresses; see `connections`. Longer ids can be sent in bodies.
Text = Annotated[str, Query(max_length=10_000)]
Id = Annotated[str, Query()]
Items = Annotated[list[str], Query(min_length=1, max_length=50)]
Limit = Annotated[int, Query(ge=1, le=200)]
MapLimit = Annotated[int, Query(ge=1, le=20_000)]


def _problem(description: str) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/ProblemDetails"}
    return {"description": description, "content": {MEDIA_TYPE: {"schema": reference}}}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: _problem("The body is not JSON."),
    401: _problem("The token is missing or wrong."),
    404: _problem("The model or the user is unknown."),
    413: _problem("The body is too large."),
    422: _problem("The request is invalid or exceeds a limit; `errors` lists the invalid fields."),
    503: _problem("The service is overloaded, or the request timed out. Retry-After says when to try again."),
}


def get_service(request: Request) -> Service:
    """Return the service of the application that received a request."""
    return request.app.state.service


ServiceDependency = Annotated[Service, Depends(get_service)]
# `middleware.AuthMiddleware` checks the token before the body is read. The dependency only documents it in OpenAPI.
api = APIRouter(prefix="/v1", dependencies=[Depends(bearer)], responses=PROBLEMS)


def _json(content: dict[str, Any]) -> Response:
    # Responses are not validated at run time, which would cost time; the tests validate them against their schemas.
    return Response(to_json(content, inf_nan_mode="null"), headers=PRIVATE_HEADERS, media_type="application/json")


@api.post("/recommend", response_model=schemas.RecommendResponse, summary="Recommend items")
async def recommend(request: schemas.RecommendRequest, service: ServiceDependency) -> Response:
    """Recommend the best items for known users (`users`) or for any history of items (`histories`)."""
    return _json(await service.recommend(request))


@api.post("/similar", response_model=schemas.SimilarResponse, summary="Find similar items")
async def similar(request: schemas.SimilarRequest, service: ServiceDependency) -> Response:
    """Find similar items: those with the largest positive weights in the row of the model's item-item matrix, or else
    with the largest cosines of item vectors. Models that have neither are refused."""
    return _json(await service.run_in_worker(service.similar, request))


@api.post("/denoise", response_model=schemas.DenoiseResponse, summary="Show the denoising trajectory")
async def denoise(request: schemas.DenoiseRequest, service: ServiceDependency) -> Response:
    """Return every denoising step of one recommendation, placed on the item map.

    Models that do not denoise return no steps. Models without item vectors are refused.
    """
    return _json(await service.run_in_worker(service.denoise, request))


@api.post("/spread", response_model=schemas.SpreadResponse, summary="Show how mass spreads over the items")
async def spread(request: schemas.SpreadRequest, service: ServiceDependency) -> Response:
    """Return the mass of the items after every hop, from the history to the scores.

    Models that diffuse no mass are refused.
    """
    return _json(await service.run_in_worker(service.spread, request))


@api.get("/models", response_model=schemas.ModelsResponse, summary="List the served models")
def models(service: ServiceDependency) -> Response:
    """List the served runs. Requests without `model` go to the first."""
    return _json({"models": [metadata.describe(run) for run in service.runs.values()]})


@api.get("/models/{name}/items", response_model=schemas.ItemsResponse, summary="Search items by title")
def items(name: str, service: ServiceDependency, q: Text = "", limit: Limit = 20) -> Response:
    """Find items whose title contains q, or whose id does if the run has no titles.

    Titles that begin with q come first, then items with more interactions.
    """
    return _json(metadata.items(service.run(name), q, limit))


@api.get("/models/{name}/users", response_model=schemas.UsersResponse, summary="Search users by id")
def users(
    name: str, service: ServiceDependency, q: Text = "", limit: Limit = 20, random: Annotated[bool, Query()] = False
) -> Response:
    """List known users whose id begins with q: the first ones, or random ones."""
    return _json(metadata.users(service.run(name), q, limit, random))


@api.get("/models/{name}/columns", response_model=schemas.ColumnsResponse, summary="Get what the item table says")
def columns(name: str, service: ServiceDependency, item: Items) -> Response:
    """Return the columns of the item table for up to 50 items; unknown items are left out."""
    return _json(metadata.columns(service.run(name), item))


@api.post("/models/{name}/columns", response_model=schemas.ColumnsResponse, summary="Get what the item table says")
def columns_of(name: str, request: schemas.ColumnsRequest, service: ServiceDependency) -> Response:
    """As GET, for ids of any length."""
    return _json(metadata.columns(service.run(name), request.items))


@api.get("/models/{name}/history", response_model=schemas.ItemsResponse, summary="Get a user's history")
def history(name: str, user: Id, service: ServiceDependency) -> Response:
    """Return the items of a user's interactions, oldest first."""
    return _json(metadata.history(service.run(name), user))


@api.post("/models/{name}/history", response_model=schemas.ItemsResponse, summary="Get a user's history")
def history_of(name: str, request: schemas.HistoryRequest, service: ServiceDependency) -> Response:
    """As GET, for ids of any length; the id does not enter logs of addresses."""
    return _json(metadata.history(service.run(name), request.user))


@api.get("/models/{name}/map", response_model=schemas.MapResponse, summary="Get the item map")
def item_map(name: str, service: ServiceDependency, limit: MapLimit = 4000) -> Response:
    """Return the items in two dimensions: the first two principal components of the item vectors."""
    return _json(metadata.item_map(service.run(name), limit))


@api.get("/models/{name}/training", response_model=schemas.TrainingResponse, summary="Get training curves and metrics")
def training(name: str, service: ServiceDependency) -> Response:
    """Return the training curves, metrics, slices and the model card of a run."""
    return _json(metadata.training(service.run(name)))
