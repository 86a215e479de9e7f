"""The ASGI application: routes, limits, start and stop, and the reloading of run folders."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import Depends, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse

from rediffuse import __version__, devices
from rediffuse.recommender.recommender import Retrieval
from rediffuse.runs.run_folder import run_path
from rediffuse.serving import explorer, problems
from rediffuse.serving.api import PROBLEMS, api, bearer
from rediffuse.serving.hosted import host
from rediffuse.serving.middleware import AuthMiddleware, BodySizeLimitMiddleware, RequestMiddleware
from rediffuse.serving.problems import ProblemDetails, problem_response
from rediffuse.serving.service import Service
from rediffuse.serving.settings import Settings
from rediffuse.serving.telemetry import Telemetry


def create_app(
    folders: Sequence[Path],
    settings: Settings | None = None,
    retrieval: Retrieval = "exact",
    device: str | torch.device = "cpu",
) -> FastAPI:
    """Create an ASGI application that serves run folders.

    Args:
        folders: the run folders; the first is the default model. They are read now, and again whenever they change.
        settings: limits; the defaults suit one machine.
        retrieval, device: see `rediffuse.Recommender.load`.

    Raises:
        ConfigError: no folders were given, two have the same name, or torch finds no such device.
        RunError: a folder is not a run, or has no index although ``retrieval`` is ``"index"``.
    """
    settings, telemetry = settings or Settings(), Telemetry()
    devices.resolve(device)  # refuses it before runs are read
    places = [run_path("folders", folder) for folder in folders]
    runs = host(places, retrieval, settings.max_batch, telemetry, device)
    ready = False

    async def watch_folders() -> None:
        while True:
            await asyncio.sleep(settings.reload_every)
            for run in runs.values():
                await asyncio.to_thread(run.reload_if_changed)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        for run in runs.values():
            run.batcher.start()
        watcher, ready = asyncio.create_task(watch_folders()), True
        yield
        ready = False
        watcher.cancel()
        await asyncio.gather(*(asyncio.to_thread(run.batcher.close) for run in runs.values()))

    # FastAPI's own documentation pages load scripts from another server; `explorer` serves /docs from local files.
    app = FastAPI(title="Rediffuse", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    # /training/ would be redirected to the host that the request names, which may be another.
    app.router.redirect_slashes = False
    app.state.service = Service(runs, settings)
    problems.install(app)
    app.include_router(api)
    app.include_router(explorer.router())

    @app.get("/health", summary="Check that the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Check that requests are answered", responses={503: PROBLEMS[503]})
    async def readiness() -> Response:
        if not ready:
            return problem_response(503, "not-ready", "The service is starting or stopping.")
        return Response('{"status":"ready"}', media_type="application/json")

    @app.get(
        "/metrics",
        summary="Get metrics for Prometheus",
        dependencies=[Depends(bearer)],
        response_class=PlainTextResponse,
        responses={401: PROBLEMS[401]},
    )
    async def metrics() -> Response:
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _openapi(app, with_token=settings.token is not None)
        return app.openapi_schema

    app.openapi = openapi
    app.add_middleware(BodySizeLimitMiddleware, limit=settings.max_body, total=settings.max_bodies)
    app.add_middleware(AuthMiddleware, settings=settings)
    app.add_middleware(RequestMiddleware, telemetry=telemetry, access_log=settings.access_log)
    return app


def _openapi(app: FastAPI, with_token: bool) -> dict[str, Any]:
    """Describe the application, with ProblemDetails instead of FastAPI's errors, and security only with a token."""
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = description["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {}) | {"ProblemDetails": schema}
    if not with_token:
        description["components"].pop("securitySchemes", None)
        for operations in description["paths"].values():
            for operation in operations.values():
                operation.pop("security", None)
    return description
