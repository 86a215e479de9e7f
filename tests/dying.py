"""Processes killed (kill -9) at a chosen point, for the tests of resuming and `benchmarks/faults/kills.py`.

They are forks of a server that has imported everything, so starting one takes little time.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pkgutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The call before which the process is killed, as module:function; with "update" and "renamed", after it.
PLACES = {
    "step": "rediffuse.training.loop:Trainer._step",
    "update": "torch.optim:AdamW.step",
    "evaluation": "rediffuse.training.loop:evaluate_task",
    "best": "rediffuse.training.loop:save_tensors",
    "checkpoint": "rediffuse.training.loop:save_training",
    "epoch": "rediffuse.training.loop:Trainer._log",
    "end": "rediffuse.training.train:write_run",
    "write": "pathlib:Path.write_bytes",  # after half of the bytes
    "block": "rediffuse.files:DigestedFile.write",  # after half of a block of tensors, or of their header
    "sync": "rediffuse.files:sync",
    "rename": "pathlib:Path.replace",
    "renamed": "pathlib:Path.replace",
    "signals": "rediffuse.models.pdrec:PDRec._derive_signals",
    "journal": "optuna.storages.journal:JournalFileBackend.append_logs",
    "lock": "optuna.storages.journal:JournalFileOpenLock.release",
    "lists": "rediffuse.recommender:Recommender.lists",
    "link": "pathlib:Path.hardlink_to",
}

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["rediffuse.training", "rediffuse.comparison", "rediffuse.tuning", "optuna"])


def dies(place: str, count: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a function in a process that is killed at ``place``, after passing it ``count`` times."""
    process = start({place: count}, function, *arguments, **options)
    process.join()
    assert process.exitcode == -signal.SIGKILL, f"ended with {process.exitcode}, not at {place} {count}"


def start(deaths: dict[str, int], function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Start a process that calls a function and is killed at the first place of ``deaths`` whose count it reaches.

    It writes a checkpoint after every training step.
    """
    process = _server.Process(target=_work, args=(deaths, function, arguments, options))
    process.start()
    return process


def tally(counts: Path, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call a function and write, as JSON, how often it passed each place."""
    calls = dict.fromkeys(PLACES, 0)

    def counted(place: str) -> None:
        calls[place] += 1

    for place in PLACES:
        _patch(place, functools.partial(counted, place))
    function(*arguments, **options)
    counts.write_text(json.dumps(calls))


def hold_lock(folder: Path, ready: Any) -> None:
    """Hold the lock of a folder until killed."""
    from rediffuse.runs.lock import folder_lock

    with folder_lock(folder, "training"):
        ready.set()
        signal.pause()


def event() -> Any:
    """An event that one process sets and another waits for."""
    return _server.Event()


def _work(deaths: dict[str, int], function: Callable[..., Any], arguments: Any, options: Any) -> None:
    from rediffuse.training import loop

    loop.CHECKPOINT_SECONDS = 0.0
    for place, count in deaths.items():
        _patch(place, functools.partial(_count_down, [count]))
    function(*arguments, **options)


def _count_down(left: list[int]) -> bool:
    left[0] -= 1
    return left[0] < 0


def _patch(place: str, is_time: Callable[[], Any]) -> None:
    """Kill the process at ``place`` once ``is_time``, which is called every time, returns true."""
    module, _, names = PLACES[place].partition(":")
    *owner, name = names.split(".")
    holder = pkgutil.resolve_name(f"{module}:{'.'.join(owner)}")
    function = getattr(holder, name)

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if place in ("update", "renamed"):
            result = function(*args, **kwargs)
            return _die() if is_time() else result
        if is_time():
            if place in ("write", "block"):
                target, content = args
                function(target, content[: len(content) // 2])
            _die()
        return function(*args, **kwargs)

    setattr(holder, name, wrapped)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
