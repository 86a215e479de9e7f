"""A run folder that is being served: read whole, and replaced whole when it changes."""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.recommender import Recommender
from rediffuse.recommender.recommender import Retrieval
from rediffuse.runs.run_folder import MANIFEST
from rediffuse.serving.batcher import Batcher
from rediffuse.serving.telemetry import Telemetry

log = logging.getLogger("rediffuse.serving")


class RunSnapshot:
    """One state of a run folder. Requests hold on to the one they began with."""

    def __init__(self, folder: Path, retrieval: Retrieval) -> None:
        # The manifest first: should the folder change meanwhile, the next look sees a manifest that is not this one.
        self.version = _version(folder) if (folder / MANIFEST).is_file() else ""
        self.recommender = Recommender.load(folder, retrieval)
        self.loaded_at = datetime.datetime.now(datetime.UTC)
        self.titles = None
        if "title" in self.recommender.items.columns:
            self.titles = self.recommender.items["title"].to_list()
        self.item_ids = self.recommender.items["item_id"].to_list()

    def item(self, number: int) -> dict[str, Any]:
        """The content of an Item."""
        return {"item_id": self.item_ids[number], "title": None if self.titles is None else self.titles[number]}


class HostedRun:
    """A run under the name of its folder, with the thread that scores for it."""

    def __init__(self, folder: Path, retrieval: Retrieval, max_batch: int, telemetry: Telemetry) -> None:
        self.folder, self.name = folder, _name(folder)
        self.retrieval: Retrieval = retrieval
        self.loaded = RunSnapshot(folder, retrieval)
        self.telemetry, self.reloading = telemetry, threading.Lock()
        self.refused: object = None  # the state of the folder that could not be read
        self.batcher = Batcher(max_batch, telemetry.batch.labels(self.name).observe)
        telemetry.waiting.labels(self.name).set_function(lambda: self.batcher.people_waiting)

    def refresh(self) -> None:
        """Read the folder again if it has changed. One that cannot be read is reported once; the old state goes on."""
        with self.reloading:
            try:
                version, state = _version(self.folder), _state(self.folder)
            except OSError:
                return  # being written; the manifest comes last
            # A folder that is copied may have its manifest before other files: any change is worth another look.
            if version == self.loaded.version or state == self.refused:
                return
            try:
                self.loaded = RunSnapshot(self.folder, self.retrieval)
            except Exception as error:  # files that change while they are read end in errors of any kind
                self.refused = state
                self.telemetry.reloads.labels(self.name, "failed").inc()
                expected = isinstance(error, RediffuseError)
                log.warning(
                    "%s has changed and cannot be read; the earlier state goes on: %s",
                    self.name,
                    error,
                    exc_info=None if expected else error,
                )
                return
            self.refused = None
            self.telemetry.reloads.labels(self.name, "done").inc()
            log.info("%s was read again (%s)", self.name, self.loaded.version)


def host(folders: list[Path], retrieval: Retrieval, max_batch: int, telemetry: Telemetry) -> dict[str, HostedRun]:
    """Runs by name.

    Raises:
        ConfigError: none, or two folders of one name.
        RunError: a folder is no run, or has no index where one was asked for.
    """
    runs: dict[str, HostedRun] = {}
    names = [_name(folder) for folder in folders]
    if not folders:
        raise ConfigError("No run was given.", "Give one or more run folders.")
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{names.count(name)} of the run folders are called {name!r}.", "Rename all but one.")
    for folder, name in zip(folders, names, strict=True):
        runs[name] = HostedRun(folder, retrieval, max_batch, telemetry)
    return runs


def _name(folder: Path) -> str:
    """As given: a link that is put to another folder keeps its name."""
    return folder.name or folder.resolve().name


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Something that changes whenever a file of the folder does."""
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def _version(folder: Path) -> str:
    """A digest of everything in a run folder: that of its manifest."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
