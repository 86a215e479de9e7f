"""ASGI middleware around every request: its id, metrics, the access log, authentication, and the size of bodies."""

from __future__ import annotations

import json
import secrets
import time
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rediffuse.serving import logs
from rediffuse.serving.problems import problem_response
from rediffuse.serving.settings import Settings
from rediffuse.serving.telemetry import Telemetry


class RequestMiddleware:
    """Gives requests an id, counts them, measures their latency, and logs them.

    Metrics have the route template, so that ids in paths create no new time series. The access log has the path without
    the query, which may hold ids of users.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry, access_log: bool) -> None:
        self.app, self.telemetry, self.access_log = app, telemetry, access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # the client disconnected before the response
        record = logs.RequestRecord(logs.request_id(dict(scope["headers"]).get(b"x-request-id")))
        # Each request runs in a context of its own, so this is not reset: handlers of errors outside still read it.
        logs.current.set(record)

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", []))
                if not any(name.lower() == b"x-request-id" for name, _ in headers):
                    message = {**message, "headers": [*headers, (b"x-request-id", record.id.encode())]}
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
            run, seconds = record.run or "", time.perf_counter() - began
            self.telemetry.requests.labels(route, method, str(status), run).inc()
            self.telemetry.latency.labels(route, run).observe(seconds)
            if self.access_log:
                _log_access(scope, record, method, route, status, seconds)


def _log_access(scope: Scope, record: logs.RequestRecord, method: str, route: str, status: int, seconds: float) -> None:
    client, milliseconds = (scope.get("client") or ("",))[0], round(1000 * seconds, 1)
    fields = {"method": method, "path": scope["path"], "route": route, "status": status}
    fields |= {"milliseconds": milliseconds, "model": record.run, "client": client, "request_id": record.id}
    # Quoted, because clients choose the path: a line break in it would forge a line of the log.
    path = json.dumps(scope["path"])
    logs.access.info(
        "%s %s %s %d %s ms %s %s",
        client,
        method,
        path,
        status,
        milliseconds,
        record.run or "-",
        record.id,
        extra={"fields": fields},
    )


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
    """Refuses bodies of more than ``limit`` bytes, whether or not Content-Length says so, and bodies for which those of
    the requests in progress leave no capacity in ``total`` bytes."""

    def __init__(self, app: ASGIApp, limit: int, total: int) -> None:
        self.app, self.limit, self.total, self.used = app, limit, total, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            await self._read(scope, receive, send, body)
        finally:
            self.used -= len(body)

    async def _read(self, scope: Scope, receive: Receive, send: Send, body: bytearray) -> None:
        """Read the body and call the application; ``used`` counts what ``body`` holds."""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client disconnected
            piece = message.get("body", b"")
            body += piece
            self.used += len(piece)
            if len(body) > self.limit:
                remedy = "Send fewer users per request, or shorter lists."
                detail = f"The body has more than {self.limit:,} bytes."
                await problem_response(413, "too-large", detail, remedy)(scope, receive, send)
                return
            if self.used > self.total:
                detail, headers = "The requests in progress are too large together.", {"Retry-After": "1"}
                response = problem_response(503, "overloaded", detail, "Try again in a second.", headers=headers)
                await response(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        delivered = False

        async def receive_buffered() -> Message:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, receive_buffered, send)
