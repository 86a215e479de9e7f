"""What happens to every request before and after its route: measured, and kept within its size."""

from __future__ import annotations

import secrets
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rediffuse.serving.problems import problem_response
from rediffuse.serving.settings import Settings
from rediffuse.serving.telemetry import Telemetry


class MetricsMiddleware:
    """Counts requests by the template of their route, so that ids in paths make no new series."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # of those who left before there was an answer

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception:
            status = 500
            raise
        finally:
            route = getattr(scope.get("route"), "path", "none")
            # Methods are the caller's words; only known ones become labels.
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self.telemetry.requests.labels(route, method, str(status)).inc()
            self.telemetry.seconds.labels(route).observe(time.perf_counter() - began)


class AuthMiddleware:
    """Refuses callers by other names than ``settings.hosts``, and those without the token where it matters; before any
    of their body is read."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        headers = dict(scope["headers"])
        if (hosts := self.settings.hosts) is not None:
            try:
                name = urlsplit("//" + headers.get(b"host", b"").decode("latin-1")).hostname
            except ValueError:
                name = None
            if name not in hosts:
                remedy = f"Call it by one of: {', '.join(sorted(hosts))}."
                return problem_response(421, "unknown-host", "The service does not go by that name.", remedy)
        token = self.settings.token
        if token is None or not scope["path"].startswith(("/v1", "/metrics")):
            return None
        if secrets.compare_digest(headers.get(b"authorization", b""), b"Bearer " + token.encode()):
            return None
        detail, remedy = "The token is missing or wrong.", "Send the header Authorization: Bearer TOKEN."
        return problem_response(401, "unauthorized", detail, remedy, headers={"WWW-Authenticate": "Bearer"})


class BodySizeLimitMiddleware:
    """Refuses bodies of more than ``most`` bytes, announced or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the caller is gone
            body += message.get("body", b"")
            if len(body) > self.most:
                remedy = "RankingQuery for fewer people at once, or with shorter lists."
                detail = f"The request has more than {self.most:,} bytes."
                await problem_response(413, "too-large", detail, remedy)(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, whole, send)
