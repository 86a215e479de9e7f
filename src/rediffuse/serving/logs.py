"""Logs of the service: lines of text or of JSON on stderr, with the id of the request that they belong to."""

from __future__ import annotations

import datetime
import json
import logging
import re
import secrets
import sys
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from rediffuse.display import plain

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
access = logging.getLogger("rediffuse.access")
# What a client may choose as the id of a request. It enters logs and headers, so it is short and has no spaces.
SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass
class RequestRecord:
    """What logs and metrics say about a request; ``run`` is filled in when the request names or gets one."""

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    run: str | None = None


current: ContextVar[RequestRecord | None] = ContextVar("rediffuse_request", default=None)


def request_id(given: bytes | None) -> str:
    """The id that a client gave in X-Request-ID if it is sane, else a new one."""
    text = (given or b"").decode("latin-1")
    return text if SANE_ID.fullmatch(text) else RequestRecord().id


class TextFormatter(logging.Formatter):
    """One line per record: time, level, message, request id."""

    def format(self, record: logging.LogRecord) -> str:
        said = plain(super().format(record), "\n\t")
        request = current.get()
        return said if request is None or record.name == access.name else f"{said} (request {request.id})"


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id, and what ``extra={"fields": ...}`` has."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        entry["message"] = record.getMessage()
        if (request := current.get()) is not None:
            entry["request_id"] = request.id
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def configure_logging(level: LogLevel, kind: LogFormat) -> None:
    """Send the logs of Rediffuse and uvicorn to stderr. Of uvicorn, info is left out: it only says that it started."""
    handler = logging.StreamHandler(sys.stderr)
    text = TextFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S%z")
    handler.setFormatter(JsonFormatter() if kind == "json" else text)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    for name, lowest in (("rediffuse", threshold), ("uvicorn", threshold if level == "debug" else max(threshold, 30))):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(lowest)
