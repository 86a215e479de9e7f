"""What a service allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits of a service; they hold for every request.

    Attributes:
        max_batch: people scored together. 1 switches batching off.
        timeout: seconds that an answer may take, waiting included.
        max_waiting: people waiting to be scored, at which further requests are turned away.
        max_body: bytes of a request.
        max_work: people x samples x steps of one request.
        token: what callers must bear, or None.
        reload_every: seconds between looks at the run folders.
    """

    max_batch: int = 64
    timeout: float = 10.0
    max_waiting: int = 4096
    max_body: int = 1 << 20
    max_work: int = 1 << 15
    token: str | None = None
    reload_every: float = 1.0


# Of single fields; they stand in the OpenAPI description as well.
MAX_PEOPLE = 256
MAX_K = 1000
MAX_HISTORY = 1000
MAX_ITEMS = 10_000
MAX_SAMPLES = 64
