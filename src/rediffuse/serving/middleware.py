"""What happens to every request before and after its route: measured, and kept within its size."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rediffuse.serving.problems import problem_response
from rediffuse.serving.telemetry import Telemetry


class Measured:
    """Counts requests by the template of their route, so that ids in paths make no new series."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            # Methods are the caller's words; only known ones become labels.
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD") else "other"
            self.telemetry.requests.labels(route, method, str(status)).inc()
            self.telemetry.seconds.labels(route).observe(time.perf_counter() - began)


class Limited:
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
                remedy = "Ask for fewer people at once, or with shorter lists."
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
