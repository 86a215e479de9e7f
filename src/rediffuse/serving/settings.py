"""Limits of the service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Limits and access of a service.

    Attributes:
        max_batch: the most users in a batch; 1 turns dynamic batching off.
        timeout: the most seconds that a request may take to arrive, and again to be answered, including the time it
            waits.
        max_connections: open connections.
        max_waiting: users waiting to be scored at which further requests are refused.
        max_body: the most bytes in the body of a request.
        max_bodies: the most bytes in the bodies of all requests in progress.
        max_work: the most users x samples x sampling steps of one request.
        max_worker_requests: requests outside of scoring (similar items, denoising trajectories, spreading mass,
            explanations) at which further ones are refused. Two threads work on them.
        token: the token that clients must send, or None.
        hosts: host names that requests may use; None allows any. This protects against DNS rebinding: a page of
            another site whose name was made to resolve to this machine.
        reload_every: seconds between two checks of the run folders.
        access_log: whether every request is logged.
    """

    max_batch: int = 64
    timeout: float = 10.0
    max_connections: int = 1024
    max_waiting: int = 4096
    max_body: int = 1 << 20
    max_bodies: int = 1 << 26
    max_work: int = 1 << 13
    max_worker_requests: int = 32
    token: str | None = None
    hosts: frozenset[str] | None = None
    reload_every: float = 1.0
    access_log: bool = False


# Limits of single fields, which the OpenAPI description contains as well.
MAX_USERS = 256
MAX_K = 1000
MAX_HISTORY = 1000
MAX_ITEMS = 10_000
MAX_SAMPLES = 64
# Ids of unknown items that a response names.
MAX_IGNORED = 100
# Limits of users x k of a request, without and with explanations.
MAX_RECOMMENDED = 20_000
MAX_EXPLAINED = 1_000
# The same with re-ranking.
MAX_RERANKED = 2_000
# A request with up to this many ids is resolved on the event loop, a larger one in a worker thread.
MAX_INLINE_IDS = 2_000
