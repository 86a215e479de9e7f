"""One writer in a folder at a time. Readers need not wait: files change by renames, the manifest last."""

from __future__ import annotations

import datetime
import errno
import json
import os
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from rediffuse.errors import RediffuseWarning, RunError
from rediffuse.files import atomic_write_text, is_leftover, remove_leftovers, writing

LOCK, HOLDER = ".lock", ".lock.json"
# What adds files to a run holds it for moments; it waits so long for another that does.
PATIENCE = 10.0


@contextmanager
def folder_lock(folder: Path, doing: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process alone. The system gives it back when the process ends, however it ends.

    What processes that were killed had been writing there is removed.

    Args:
        folder: made if it is not there.
        doing: what is being done, as other processes are told: "training".
        wait: seconds to wait for a process that holds it.

    On a file system that cannot lock, nothing is held, and a `RediffuseWarning` says so.

    Raises:
        RunError: another process holds it; says which, since when and for what.
        StorageError: the folder cannot be written.
    """
    lock = FileLock(folder / LOCK)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if _can_lock(folder):
                lock.acquire(timeout=wait)
            else:
                warnings.warn(
                    f"{folder} is on a file system that cannot lock: see that one process at a time writes there.",
                    RediffuseWarning,
                    stacklevel=3,
                )
        except Timeout:
            raise RunError(f"{folder} is in use: {_holder(folder)}.", "Wait for it, or end it.") from None
    try:
        for place in (folder, folder / "checkpoints"):
            remove_leftovers(place)
        now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "doing": doing}
        atomic_write_text(folder / HOLDER, json.dumps(facts) + "\n")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _can_lock(folder: Path) -> bool:
    """Whether files there can be locked, which some network disks cannot.

    The lock itself does not say so in every version: it takes that for a lock that others hold, or makes do with a file
    that a killed process leaves behind.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            return False
    return True


def is_free(folder: Path) -> bool:
    """Whether a folder is not there, or holds nothing but what is left of processes that were killed early."""
    if not folder.is_dir():
        return not folder.exists()
    ours = (path for path in folder.iterdir() if path.name not in (LOCK, HOLDER) and not is_leftover(path))
    return all(path.name == "checkpoints" and path.is_dir() and all(map(is_leftover, path.iterdir())) for path in ours)


def _holder(folder: Path) -> str:
    try:
        facts = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return "process {pid} on {host} has been {doing} there since {since}".format(**facts)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process is at work there"
