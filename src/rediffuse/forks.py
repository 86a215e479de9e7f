"""Processes that were forked after their parent had used torch and polars.

Both keep pools of threads. A fork copies the memory of a process but not its threads, so the first parallel operation
in the child waits for ever for threads that are not there. An error is better than that silence.
"""

from __future__ import annotations

import os

from rediffuse.errors import RunError

_used = False  # this process, or one that it was forked from, has used the pools
_forked_after_use = False


def enter() -> None:
    """Say that work on the pools of threads begins; before that, refuse it in a process that was forked after use.

    Raises:
        RunError: a parent of this process used the pools before the fork.
    """
    global _used
    if _forked_after_use:
        raise RunError(
            f"Process {os.getpid()} was forked from one that had used Rediffuse already, and has lost its threads.",
            "Load runs and data after the fork, in each process (gunicorn without --preload; in Celery, in "
            'worker_process_init), or start processes with multiprocessing.get_context("spawn").',
        )
    if not _used:
        _used = True
        if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
            os.register_at_fork(after_in_child=_forked)


def _forked() -> None:
    global _forked_after_use
    _forked_after_use = True
