"""Local copies of what is in object stores, and the record of which objects they are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock

from rediffuse.files import atomic_write_text, writing
from rediffuse.objects.store import Object


def cache_folder() -> Path:
    """The folder that REDIFFUSE_CACHE names, or the one where the system keeps caches of this user."""
    if place := os.environ.get("REDIFFUSE_CACHE"):
        return Path(place).absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "rediffuse"


def copy_of(address: str, purpose: Literal["fetched", "staged", "tables", "records", "locks"]) -> Path:
    """Where the local copy of an address lies, under the name that it has there; the same for all processes."""
    store = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    digest = hashlib.sha256(f"{store} {address}".encode()).hexdigest()[:16]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", address.rpartition("/")[2]).strip(".")
    return cache_folder() / purpose / digest / (name or "root")


@contextmanager
def locked(address: str) -> Iterator[None]:
    """Only one process at a time copies what is at an address."""
    path = copy_of(address, "locks")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


class Record:
    """The sha256 of the objects at an address that this machine has copied, and what the store said of them then.

    An object of the same size and tag has the same content still.
    """

    def __init__(self, address: str) -> None:
        self._path = copy_of(address, "records")
        try:
            self._known: dict[str, list[str | int]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def sha256(self, name: str, there: Object | None) -> str | None:
        """The checksum of an object, None if it is unknown."""
        known = self._known.get(name)
        if known is None or there is None or not there.tag or known[1:] != [there.size, there.tag]:
            return None
        return str(known[0])

    def add(self, name: str, sha256: str, there: Object | None) -> None:
        """Record that an object has this checksum."""
        if there is not None:
            self._known[name] = [sha256, there.size, there.tag]
            self._save()

    def remove(self, name: str) -> None:
        """Forget an object."""
        if self._known.pop(name, None) is not None:
            self._save()

    def _save(self) -> None:
        atomic_write_text(self._path, json.dumps(self._known))
