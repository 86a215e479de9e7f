"""What workers of a training say, on its way to the process that started them: progress, warnings and errors."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from rediffuse.errors import RediffuseError, RediffuseWarning
from rediffuse.training.progress import logger, reporting

# Seconds between two looks into the mailbox.
_INTERVAL = 1.0


class Mailbox:
    """An actor that keeps what workers send until it is collected; errors for good."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.errors: dict[int, RediffuseError] = {}

    def say(self, kind: str, text: str) -> None:
        """Keep a line; ``kind`` is "progress" or "warning"."""
        self.lines.append((kind, text))

    def collect(self) -> list[tuple[str, str]]:
        """The new lines."""
        lines, self.lines = self.lines, []
        return lines

    def fail(self, rank: int, error: RediffuseError) -> None:
        """Keep the error of a worker."""
        self.errors[rank] = error

    def first_error(self) -> RediffuseError | None:
        """The error of the first worker that has one."""
        return self.errors[min(self.errors)] if self.errors else None


@contextlib.contextmanager
def delivering(mailbox: Any, progress: bool) -> Iterator[None]:
    """Within the context, lines in the mailbox become lines of the logger "rediffuse.training", and warnings."""
    import ray
    import ray.exceptions

    def deliver() -> None:
        for kind, text in ray.get(mailbox.collect.remote()):
            if kind == "warning":
                warnings.warn(text, RediffuseWarning, stacklevel=2)
            else:
                logger.info(text)

    def work() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the cluster is gone, which `fit` says
            while not ended.wait(_INTERVAL):
                deliver()

    ended = threading.Event()
    thread = threading.Thread(target=work, daemon=True)
    with reporting(progress):
        thread.start()
        try:
            yield
            deliver()
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def sending(mailbox: Any) -> Iterator[None]:
    """Within the context, the progress and the warnings of this worker go to the mailbox."""
    handler = logging.Handler()
    handler.emit = lambda record: mailbox.say.remote("progress", record.getMessage())
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)

    def show(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
        if issubclass(category, RediffuseWarning):
            mailbox.say.remote("warning", str(message))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", RediffuseWarning)
            warnings.showwarning = show
            yield
    finally:
        logger.removeHandler(handler)
