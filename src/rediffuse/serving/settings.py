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
        max_aside: requests beside scoring (similar items, walks, reasons) that wait for one of two threads.
        token: what callers must bear, or None.
        hosts: names by which the service may be called, or None: any. Against pages elsewhere whose name is made to
            lead to this machine (DNS rebinding).
        reload_every: seconds between looks at the run folders.
    """

    max_batch: int = 64
    timeout: float = 10.0
    max_waiting: int = 4096
    max_body: int = 1 << 20
    max_work: int = 1 << 13
    max_aside: int = 32
    token: str | None = None
    hosts: frozenset[str] | None = None
    reload_every: float = 1.0


# Of single fields; they stand in the OpenAPI description as well.
MAX_PEOPLE = 256
MAX_K = 1000
MAX_HISTORY = 1000
MAX_ITEMS = 10_000
MAX_SAMPLES = 64
# Items over all people of a request; with reasons, so many.
MAX_LISTED = 20_000
MAX_EXPLAINED = 1_000
# Ids that are looked up without leaving the thread that serves requests.
FEW_IDS = 2_000
