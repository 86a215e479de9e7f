"""ASGI middleware around every request: metrics, authentication, and the size limit of bodies."""

from __future__ import annotations

import secrets
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rediffuse.serving.problems import problem_response
from rediffuse.serving.settings import Settings
from rediffuse.serving.telemetry import Telemetry


class MetricsMiddleware:
    """Counts requests and measures their latency, by route template, so that ids in paths create no new time series."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # the client disconnected before the response

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "none")
            # Clients choose the method, so only known methods become labels.
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self.telemetry.requests.labels(route, method, str(status)).inc()
            self.telemetry.latency.labels(route).observe(time.perf_counter() - began)


class AuthMiddleware:
    """Refuses requests for unknown host names, and requests to ``/v1`` and ``/metrics`` without the token. It decides
    before the body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = dict(scope["headers"])
        if (hosts := self.settings.hosts) is not None:
            try:
                host = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname
            except ValueError:
                host = None
            if host not in hosts:
                remedy = f"Use one of: {', '.join(sorted(hosts))}."
                return problem_response(
                    421, "unknown-host", "The service is not available under this host name.", remedy
                )
        token = self.settings.token
        if token is None or not scope["path"].startswith(("/v1", "/metrics")):
            return None
        if secrets.compare_digest(headers.get(b"authorization", b""), b"Bearer " + token.encode()):
            return None
        detail, remedy = "The token is missing or wrong.", "Send the header Authorization: Bearer TOKEN."
        return problem_response(401, "unauthorized", detail, remedy, headers={"WWW-Authenticate": "Bearer"})


class BodySizeLimitMiddleware:
    """Refuses bodies of more than ``limit`` bytes, whether or not Content-Length says so."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client disconnected
            body += message.get("body", b"")
            if len(body) > self.limit:
                remedy = "Send fewer users per request, or shorter lists."
                detail = f"The body has more than {self.limit:,} bytes."
                await problem_response(413, "too-large", detail, remedy)(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        delivered = False

        async def receive_buffered() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, receive_buffered, send)
