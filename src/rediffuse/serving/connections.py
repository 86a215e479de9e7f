"""Connections: limits on what a client may send before a request is complete, and on how long it may take.

The application sees a request when its headers are complete. Until then, and while a client sends a body or reads a
response, only the protocol below knows the connection. So these limits are here:

- headers, trailers and the framing of a body: 64 KiB and 200 fields, else 431;
- a header or a body that is incomplete after the time-out: 408;
- a response of which a client reads less than 64 KiB within the time-out: the connection ends;
- connections: at the limit, the one that has waited longest for a request is closed for a new one. Where all have
  requests in progress, further ones get 503, except for ``/health``.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http
import logging
import socket
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from rediffuse.errors import ConfigError
from rediffuse.serving.problems import problem_response
from rediffuse.serving.settings import Settings

log = logging.getLogger("rediffuse.serving")
# Bytes that are parsed before the limits are checked again.
SLICE = 4096
# Bytes of framing that a byte of a body may have: chunks of one byte have five.
FRAMING = 8
MAX_HEAD = 1 << 16
MAX_HEADERS = 200
TOO_LARGE = (
    "headers-too-large",
    f"The headers have more than {MAX_HEAD:,} bytes or {MAX_HEADERS} fields.",
    "Send long ids and lists in the body.",
)
# Requests that a client may send ahead of the responses.
MAX_PIPELINED = 32
# Bytes that a client must read of a response within the time-out.
MIN_READ = 1 << 16
# Seconds for which a refused client may go on sending: it would not read a response that a reset overtakes.
LINGER = 2.0
# Connections beyond the limit, which get 503 or the answer of /health.
RESERVE = 64
# Files that the process needs beside connections.
FILES = 128


class Connection(HttpToolsProtocol):
    """The protocol of one connection, with limits.

    Args:
        settings: the time-out and the number of connections.
        more: arguments of the base class.
    """

    def __init__(self, settings: Settings, **more: Any) -> None:
        super().__init__(**more)
        self.settings = settings
        # When the client had to begin with the message that is not complete yet; None: a request is in progress.
        self.since: float | None = self.loop.time()
        self.nothing_yet = True  # of this message
        self.head_done = False
        # Of this message: bytes, bytes of its body, of its address and complete header fields, and the number of these.
        self.received = self.body_received = self.head_size = self.fields = 0
        self.cycles: list[RequestResponseCycle] = []  # requests whose responses are not complete
        self.discarding = False
        self.closing_since: float | None = None
        self.unsent: tuple[int, float] | None = None  # bytes of responses, and when they were that many
        self.beyond_limit = False

    # --- what a client sends -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) <= self.settings.max_connections:
            return
        waiting = [
            one for one in self.connections if isinstance(one, Connection) and one.is_waiting() and one is not self
        ]
        if waiting:
            # Several at once, so that a flood of connections does not go through all of them for each.
            for one in sorted(waiting, key=lambda one: one.since or 0.0)[: 1 + self.settings.max_connections // 50]:
                one.abort()
        elif len(self.connections) > self.settings.max_connections + RESERVE:
            transport.abort()
        else:
            self.beyond_limit = True

    def data_received(self, data: bytes) -> None:
        if self.since is None or self.nothing_yet:
            self.since, self.nothing_yet = self.loop.time(), False
        for start in range(0, len(data), SLICE):
            if self.discarding or self.transport.is_closing():
                return
            piece = data[start : start + SLICE]
            self.received += len(piece)
            super().data_received(piece)
            if self.transport.is_closing():
                return
            framing = self.received - self.body_received
            if self.since is not None and (
                framing > MAX_HEAD + FRAMING * self.body_received or self.fields > MAX_HEADERS
            ):
                self.refuse(431, *TOO_LARGE)
            elif len(self.pipeline) > MAX_PIPELINED:
                self.refuse(400, "too-many-pipelined", f"More than {MAX_PIPELINED} requests wait for their responses.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.since is None:
            self.since = self.loop.time()
        self.head_done = False
        self.received = self.body_received = self.head_size = self.fields = 0

    def on_url(self, url: bytes) -> None:
        self.head_size += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields += 1
        self.head_size += len(name) + len(value) + 4
        if self.fields <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.head_done = True
        full = self.beyond_limit or len(self.tasks) >= self.settings.max_connections
        healthy = self.url.partition(b"?")[0] == b"/health"
        app = _overloaded if full and not healthy else self.config.loaded_app
        too_large = self.head_size > MAX_HEAD or self.fields > MAX_HEADERS
        self.app = cast(Any, _headers_too_large if too_large else app)
        super().on_headers_complete()
        self.cycles = [one for one in self.cycles if not one.response_complete]
        if self.cycle is not None:
            self.cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self.body_received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        # Where the response was complete before its body, the client has to send the next request now.
        answered = self.cycle is None or self.cycle.response_complete
        self.since, self.nothing_yet = (self.loop.time(), True) if answered else (None, False)
        self.received = self.body_received = self.head_size = self.fields = 0

    def on_response_complete(self) -> None:
        if self.discarding:  # the last response of this connection
            self.transport.close()
            return
        super().on_response_complete()
        if self.since is None and not self.pipeline:
            self.since, self.nothing_yet = self.loop.time(), True

    # --- how a connection ends -----------------------------------------------------------------------------

    def is_waiting(self) -> bool:
        """Whether the client has to send something: no complete request is in progress."""
        return self.since is not None and not self._has_earlier_request()

    def _has_earlier_request(self) -> bool:
        """Whether a request before the incomplete message is in progress."""
        return bool(self.pipeline) or not (self.head_done or self.cycle is None or self.cycle.response_complete)

    def refuse(self, status: int, kind: str, detail: str, remedy: str | None = None) -> None:
        """Answer the incomplete message with a problem, and end the connection. Earlier requests are answered."""
        self.discarding = True
        self._unset_keepalive_if_required()
        if self._has_earlier_request():
            self.pipeline.clear()
            return
        started = self.head_done and self.cycle is not None and self.cycle.response_started
        if started and not self.cycle.response_complete:
            self.abort()
            return
        self.closing_since = self.loop.time()
        if not started:
            if self.head_done and self.cycle is not None:  # the application waits for the body
                self._disconnect()
            response = problem_response(status, kind, detail, remedy, headers={"Connection": "close"})
            head = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
            line = f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n".encode()
            self.transport.write(line + head + b"\r\n" + bytes(response.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnect()
        super().connection_lost(exc)

    def _disconnect(self) -> None:
        """Have the application find that the client is gone; the base class tells only the last of several requests."""
        for cycle in self.cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def abort(self) -> None:
        """End the connection at once, without what was not sent yet."""
        self._disconnect()
        self.transport.abort()

    def check(self, now: float) -> None:
        """End the connection if its time is up. `Server` calls this several times per time-out."""
        if self.closing_since is not None:
            if now - self.closing_since > LINGER:
                self.abort()
            return
        size = self.transport.get_write_buffer_size()
        if not size:
            self.unsent = None
        elif self.unsent is None:
            self.unsent = size, now
        elif now - self.unsent[1] > self.settings.timeout:
            if size > self.unsent[0] - MIN_READ:
                self.abort()
                return
            self.unsent = size, now
        if self.since is None or now - self.since <= self.settings.timeout or self.discarding:
            return
        if self.nothing_yet:
            self.transport.close()
        elif not self.transport.is_closing():
            detail = f"The request was not complete after {self.settings.timeout:g} seconds."
            self.refuse(408, "incomplete-request", detail, "Send it at once, or in smaller parts.")

    def shutdown(self) -> None:
        """End the connection, or have it end with the response in progress."""
        if not self.is_waiting():
            super().shutdown()
        elif self.nothing_yet:
            self.closing_since = self.loop.time()
            self.transport.close()
        elif not self.discarding:
            self.refuse(503, "stopping", "The service is stopping.")


async def _headers_too_large(scope: Scope, receive: Receive, send: Send) -> None:
    await problem_response(431, *TOO_LARGE, headers={"Connection": "close"})(scope, receive, send)


async def _overloaded(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Retry-After": "1", "Connection": "close"}
    response = problem_response(
        503, "overloaded", "Too many connections are open.", "Try again in a second.", headers=headers
    )
    await response(scope, receive, send)


class Server(uvicorn.Server):
    """Serves an application with the limits of `Connection`.

    Args:
        app: the application.
        settings: of the application.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        config = uvicorn.Config(
            cast(Any, app),
            http=cast(Any, functools.partial(Connection, settings)),
            ws="none",
            log_config=None,  # `configure_logging` is in charge
            access_log=False,
            server_header=False,
            # Requests in progress have this time to finish before the process ends.
            timeout_graceful_shutdown=int(settings.timeout) + 1,
        )
        super().__init__(config)
        self.settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.checks = asyncio.create_task(self._check_connections())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self.checks.cancel()

    async def _check_connections(self) -> None:
        pause = min(max(self.settings.timeout / 10, 0.02), 0.5)
        while True:
            await asyncio.sleep(pause)
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, Connection):
                    try:
                        connection.check(now)
                    except Exception:  # one connection must not keep the others from being checked
                        log.exception("A connection could not be checked, and was closed")
                        connection.abort()


def allowed_connections(wanted: int) -> int:
    """As many of the ``wanted`` connections as the process may open files for; raises its soft limit if it can.

    Raises:
        ConfigError: the limit leaves fewer than 16.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    needed = wanted + RESERVE + FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
        soft = raised
    if soft >= needed:
        return wanted
    allowed = soft - RESERVE - FILES
    if allowed < 16:
        raise ConfigError(
            f"This process may open {soft:,} files, and {wanted:,} connections need {needed:,}.",
            f"Raise the limit: ulimit -n {needed} (in a service: LimitNOFILE={needed}).",
        )
    log.warning(
        f"This process may open {soft:,} files, so it keeps at most {allowed:,} connections instead of {wanted:,}. "
        f"To raise the limit: ulimit -n {needed}"
    )
    return allowed
