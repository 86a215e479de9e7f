"""Checkpoints of a training that writes to a bucket, uploaded as they are saved, for another machine to resume."""

from __future__ import annotations

import math
import os
import time
import warnings
from typing import Any

from rediffuse import distributed
from rediffuse.errors import ConfigError, RediffuseWarning, StorageError
from rediffuse.objects.folders import Output
from rediffuse.runs.run_folder import LOG
from rediffuse.training.callbacks import Callbacks

# Between two uploads: epochs may take less time than requests.
SECONDS = 30.0
_LAST = "checkpoints/last.safetensors"


def with_uploads(callbacks: Callbacks, place: Output) -> Callbacks:
    """The callbacks, and one that uploads new checkpoints, if the training writes to an address.

    Raises:
        ConfigError: processes on several machines, which share no staging folder.
    """
    if place.address is None:
        return callbacks
    if int(os.environ.get("LOCAL_WORLD_SIZE") or distributed.world_size()) < distributed.world_size():
        raise ConfigError(
            f"out is {place.address}, and this training runs on several machines.",
            "Write to a folder that they share, and copy the finished run.",
        )
    if distributed.rank() == 0:
        callbacks.callbacks.insert(0, _Uploads(place))  # before one that may end training
    return callbacks


class _Uploads:
    def __init__(self, place: Output) -> None:
        self.place, self.uploaded, self.ended = place, None, -math.inf

    def on_step(self, event: Any) -> None:
        self.upload()

    def on_validation(self, event: Any) -> None:
        self.upload()

    def upload(self) -> None:
        """Upload the checkpoints if the last one is new. What it needs comes first: a resumed training reads the last
        one, and repeats what came after it."""
        last = self.place.folder / _LAST
        stamp = last.stat().st_mtime_ns if last.exists() else None
        if stamp == self.uploaded or time.monotonic() - self.ended < SECONDS:
            return
        names = [LOG] if (self.place.folder / LOG).exists() else []
        names += sorted(f"checkpoints/{path.name}" for path in last.parent.iterdir() if not path.name.startswith("."))
        try:
            self.place.upload(sorted(names, key=lambda name: name == _LAST))
        except StorageError as error:
            warnings.warn(
                f"The checkpoint was not uploaded, and training goes on: {error.problem}",
                RediffuseWarning,
                stacklevel=2,
            )
        self.uploaded, self.ended = stamp, time.monotonic()
