"""The application: routes, limits, and what keeps it up to date."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse

from rediffuse import __version__
from rediffuse.recommender.recommender import Retrieval
from rediffuse.serving import explorer, problems
from rediffuse.serving.api import PROBLEMS, api, bearer
from rediffuse.serving.hosted import host
from rediffuse.serving.middleware import AuthMiddleware, BodySizeLimitMiddleware, MetricsMiddleware
from rediffuse.serving.problems import ProblemDetails, problem_response
from rediffuse.serving.service import Service
from rediffuse.serving.settings import Settings
from rediffuse.serving.telemetry import Telemetry


def create_app(folders: Sequence[Path], settings: Settings | None = None, retrieval: Retrieval = "exact") -> FastAPI:
    """An ASGI application that serves run folders.

    Args:
        folders: of runs; the first is the default. They are read here, and again whenever they change.
        settings: limits; the defaults are for one machine.
        retrieval: see `rediffuse.Recommender.load`.

    Raises:
        ConfigError, RunError: as `rediffuse.serving.hosted.host`.
    """
    settings, telemetry = settings or Settings(), Telemetry()
    runs = host([Path(folder) for folder in folders], retrieval, settings.max_batch, telemetry)
    ready = False

    async def keep_fresh() -> None:
        while True:
            await asyncio.sleep(settings.reload_every)
            for run in runs.values():
                await asyncio.to_thread(run.refresh)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        nonlocal ready
        for run in runs.values():
            run.batcher.start()
        fresh, ready = asyncio.create_task(keep_fresh()), True
        yield
        ready = False
        fresh.cancel()
        await asyncio.gather(*(asyncio.to_thread(run.batcher.close) for run in runs.values()))

    # FastAPI's own documentation pages load their script from elsewhere.
    app = FastAPI(title="Rediffuse", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = Service(runs, settings)
    problems.install(app)
    app.include_router(api)
    app.include_router(explorer.router())

    @app.get("/health", summary="Whether the process lives")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Whether requests are answered", responses={503: PROBLEMS[503]})
    async def readiness() -> Response:
        if not ready:
            return problem_response(503, "not-ready", "The service is starting or stopping.")
        return Response('{"status":"ready"}', media_type="application/json")

    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        dependencies=[Depends(bearer)],
        response_class=PlainTextResponse,
        responses={401: PROBLEMS[401]},
    )
    async def metrics() -> Response:
        return Response(telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _described(app, locked=settings.token is not None)
        return app.openapi_schema

    app.openapi = openapi
    app.add_middleware(BodySizeLimitMiddleware, most=settings.max_body)
    app.add_middleware(AuthMiddleware, settings=settings)
    app.add_middleware(MetricsMiddleware, telemetry=telemetry)
    return app


def _described(app: FastAPI, locked: bool) -> dict[str, Any]:
    """The OpenAPI description, with our problems for FastAPI's, and a token only where one is asked for."""
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    parts = described["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        parts.pop(name, None)
    schema = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    parts |= schema.pop("$defs", {}) | {"ProblemDetails": schema}
    if not locked:
        described["components"].pop("securitySchemes", None)
        for operations in described["paths"].values():
            for operation in operations.values():
                operation.pop("security", None)
    return described
