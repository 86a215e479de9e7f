"""Served runs: each folder is read completely, and its snapshot is replaced as a whole when the folder changes."""

from __future__ import annotations

import datetime
import hashlib
import logging
import threading
from pathlib import Path
from typing import Any

import polars as pl
import torch

from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.recommender import Recommender
from rediffuse.recommender.recommender import Retrieval
from rediffuse.runs.run_folder import MANIFEST, run_path
from rediffuse.serving.batcher import DynamicBatcher
from rediffuse.serving.telemetry import Telemetry

log = logging.getLogger("rediffuse.serving")


class RunSnapshot:
    """The content of a run folder at one time. A request uses one snapshot from beginning to end."""

    def __init__(self, folder: Path, retrieval: Retrieval, device: str | torch.device) -> None:
        # The version is computed first. If the folder changes while it is read, the next check finds another version.
        self.version = _version(folder) if (folder / MANIFEST).is_file() else ""
        self.recommender = Recommender.load(folder, retrieval, device)
        self.loaded_at = datetime.datetime.now(datetime.UTC)
        items = self.recommender.items
        self.titles = items["title"].to_list() if "title" in items.columns else None
        self.item_ids = items["item_id"].to_list()
        self.item_texts: list[str] = items["item_id"].cast(pl.String).to_list()

    def item(self, number: int) -> dict[str, Any]:
        """Return the content of an `Item` for an item number."""
        return {"item_id": self.item_texts[number], "title": None if self.titles is None else self.titles[number]}


class HostedRun:
    """A run that is served under the name of its folder, with its current snapshot and its batcher."""

    def __init__(
        self, folder: Path, retrieval: Retrieval, max_batch: int, telemetry: Telemetry, device: str | torch.device
    ) -> None:
        self.folder, self.name = run_path("run", folder), _name(folder)
        self.retrieval: Retrieval = retrieval
        self.device = device
        self.snapshot = RunSnapshot(self.folder, retrieval, device)
        self.telemetry, self.reloading = telemetry, threading.Lock()
        self.training: tuple[object, dict[str, Any]] | None = (
            None  # see `metadata.training`, with what it was read from
        )
        self.training_lock = threading.Lock()
        self.failed_state: object = None  # state of the folder at the last failed reload
        self.batcher = DynamicBatcher(max_batch, telemetry.batch_size.labels(self.name).observe)
        telemetry.waiting_users.labels(self.name).set_function(lambda: self.batcher.users_waiting)
        self._describe()

    def _describe(self) -> None:
        snapshot, config = self.snapshot, self.snapshot.recommender.config
        fingerprint, end = snapshot.recommender.fingerprint, config["data"].get("histories_end")
        self.telemetry.describe_model(self.name, config["model"], snapshot.version, fingerprint, end)

    def reload_if_changed(self) -> None:
        """Read the folder again if it has changed. If that fails, log it once and keep the old snapshot."""
        with self.reloading:
            try:
                version, state = _version(self.folder), _state(self.folder)
            except OSError:
                return  # the folder is being written; the manifest is written last
            # A copied folder may get its manifest before other files, so any change of the folder is a reason to retry.
            if version == self.snapshot.version or state == self.failed_state:
                return
            old = self.snapshot
            try:
                self.snapshot = RunSnapshot(self.folder, self.retrieval, self.device)
            except Exception as error:  # files that change while they are read can raise any error
                self.failed_state = state
                self.telemetry.reloads.labels(self.name, "failed").inc()
                expected = isinstance(error, RediffuseError)
                log.warning(
                    "%s has changed and cannot be read; the old run snapshot stays in use: %s",
                    self.name,
                    error,
                    exc_info=None if expected else error,
                )
                return
            self.failed_state = None
            self.telemetry.reloads.labels(self.name, "succeeded").inc()
            self._describe()
            versions = old.version, self.snapshot.version
            prints = old.recommender.fingerprint[:12], self.snapshot.recommender.fingerprint[:12]
            log.info(
                "%s was reloaded: version %s -> %s, fingerprint %s -> %s",
                self.name,
                *versions,
                *prints,
                extra={"fields": {"model": self.name, "version": versions, "fingerprint": prints}},
            )


def host(
    folders: list[Path], retrieval: Retrieval, max_batch: int, telemetry: Telemetry, device: str | torch.device
) -> dict[str, HostedRun]:
    """Read run folders and return the runs by name.

    Raises:
        ConfigError: no folders were given, or two have the same name.
        RunError: a folder is not a run, or has no index although ``retrieval`` is ``"index"``.
    """
    if not folders:
        raise ConfigError("No run was given.", "Give one or more run folders.")
    names = [_name(folder) for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{names.count(name)} of the run folders are called {name!r}.", "Rename all but one.")
    return {
        name: HostedRun(folder, retrieval, max_batch, telemetry, device)
        for name, folder in zip(names, folders, strict=True)
    }


def _name(folder: Path) -> str:
    """Return the name of a folder as it was given, so that a symbolic link keeps its name when it is moved."""
    return folder.name or folder.resolve().name


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Return a value that changes whenever a file of the folder changes."""
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]


def _version(folder: Path) -> str:
    """Return the digest of the manifest, which holds the checksums of all files in the folder."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]
