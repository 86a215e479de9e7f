"""One writer per folder. Readers do not wait: files are replaced by renames, the manifest last."""

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
# Seconds that a writer waits for another one. Adding files to a run takes only moments.
PATIENCE = 10.0


@contextmanager
def folder_lock(folder: Path, activity: str, wait: float = 0.0) -> Iterator[None]:
    """Lock a folder for this process. The system unlocks it when the process ends, for any reason.

    Temporary files that killed processes left in the folder are removed.

    Args:
        folder: created if it does not exist.
        activity: what this process does there, for the error of other processes: "training".
        wait: seconds to wait if another process holds the lock.

    Raises:
        RunError: another process holds the lock; the error names the process, its activity and its start time.
        StorageError: the folder cannot be written.

    Warns:
        RediffuseWarning: the file system cannot lock; the folder is used without a lock.
    """
    lock = FileLock(folder / LOCK)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if can_lock(folder):
                lock.acquire(timeout=wait)
            else:
                warnings.warn(
                    f"{folder} is on a file system that cannot lock: make sure that only one process writes there.",
                    RediffuseWarning,
                    stacklevel=3,
                )
        except Timeout:
            raise RunError(f"{folder} is in use: {_holder(folder)}.", "Wait until it ends, or end it.") from None
    try:
        remove_leftovers(folder)
        remove_leftovers(folder / "checkpoints")
        now = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "activity": activity}
        atomic_write_text(folder / HOLDER, json.dumps(holder) + "\n")
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def can_lock(folder: Path) -> bool:
    """Whether the file system of a folder can lock files; some network disks cannot.

    Not every version of filelock reports this: it may take the error for a lock held by another process, or fall back
    to a file that a killed process would leave behind.
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


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a folder at this moment."""
    if not (folder / LOCK).exists():
        return False
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def is_unused(folder: Path) -> bool:
    """Whether a folder is missing, or holds only what a process leaves that was killed before it wrote a file."""
    if not folder.is_dir():
        return not folder.exists()
    paths = (path for path in folder.iterdir() if path.name not in (LOCK, HOLDER) and not is_leftover(path))
    return all(path.name == "checkpoints" and path.is_dir() and all(map(is_leftover, path.iterdir())) for path in paths)


def _holder(folder: Path) -> str:
    """The process that holds the lock, in words."""
    try:
        holder = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
        return "process {pid} on {host} has been {activity} there since {since}".format(**holder)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process writes there"
