"""What training says while it runs: a bar in terminals and notebooks, otherwise a line per validation."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

logger = logging.getLogger("rediffuse.training")

BAR_WIDTH = 30
NOTEBOOK_SECONDS = 0.5  # between two changes of the bar in a notebook


def surface() -> Literal["terminal", "notebook", "lines"]:
    """Where progress is shown: a bar in a terminal or a notebook, lines elsewhere."""
    if sys.stderr.isatty():
        return "terminal"
    return "notebook" if Console().is_jupyter else "lines"


@contextlib.contextmanager
def reporting(shown: bool) -> Iterator[None]:
    """Within the context, the logger "rediffuse.training" writes to stderr, unless the caller has configured it.

    Where a bar is shown, it writes only what a bar does not say.
    """
    if not shown or (logger.isEnabledFor(logging.INFO) and logger.hasHandlers()):
        yield
        return
    handler = logging.StreamHandler(sys.stderr)
    if surface() != "lines":
        handler.addFilter(lambda record: not getattr(record, "on_bar", False))
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


@dataclass
class Pace:
    """How fast a phase is trained in this session, and how long it will take at most.

    Attributes:
        epochs: epochs of the phase.
        done: epochs that were done before this session.
        patience: epochs without improvement after which it stops.
        started: `time.monotonic` of the start.
    """

    epochs: int
    done: float
    patience: int
    started: float

    def left(self, done: float, waited: float, limit: float) -> tuple[float, float] | None:
        """Seconds left at most, and seconds left if no validation is better; None before there is a measurement.

        Args:
            done: epochs done, with the fraction of the present one.
            waited: epochs since the best validation.
            limit: seconds until the time limit, or infinity.
        """
        trained = done - self.done
        if trained <= 0:
            return None
        per_epoch = (time.monotonic() - self.started) / trained
        most = min(per_epoch * (self.epochs - done), max(limit, 0.0))
        return most, min(most, per_epoch * max(self.patience - waited, 0.0))


def left_in_words(left: tuple[float, float] | None) -> str:
    """The time left as text; empty if it is unknown."""
    if left is None:
        return ""
    most, without = left
    return f"at most {short(most)} left" + (f" ({short(without)} without improvement)" if without < most else "")


def short(seconds: float) -> str:
    """A duration as text, such as "40 s", "5 min" or "2.5 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """A bar over the epochs of each phase, in a terminal or a notebook; nothing elsewhere, or unless ``shown``."""

    def __init__(self, shown: bool) -> None:
        found = surface() if shown else "lines"
        self.bar = _TerminalBar() if found == "terminal" else _NotebookBar() if found == "notebook" else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def start(self, phase: str, epochs: int) -> None:
        self.epochs = epochs
        if self.bar is not None:
            self.bar.start(phase, epochs)

    def step(self, done: float, loss: float, best: float | None, left: str) -> None:
        """Show how far training is.

        Args:
            done: epochs done, with the fraction of the present one.
            loss: mean of the epoch so far.
            best: best value of the selection metric.
            left: the time left, as text.
        """
        if self.bar is not None:
            best_text = "" if best is None else f"  best {best:.4f}"
            epoch = min(int(done) + (done > int(done)), self.epochs)
            self.bar.show(done, f"epoch {epoch}/{self.epochs}  loss {loss:.4f}{best_text}  {left}")


class _TerminalBar:
    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # Not Jupyter, where rich needs ipywidgets.
        self.bar = Bar(*columns, console=Console(stderr=True, force_jupyter=False), transient=True)

    def start(self, phase: str, epochs: int) -> None:
        self.bar.start()
        self.task = self.bar.add_task(phase, total=epochs, note="")

    def show(self, done: float, note: str) -> None:
        self.bar.update(self.task, completed=done, note=note)

    def stop(self) -> None:
        self.bar.stop()


class _NotebookBar:
    """One line of text that is replaced. It needs IPython, which every kernel has, and not ipywidgets."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.text = ""
        self.shown = 0.0

    def start(self, phase: str, epochs: int) -> None:
        self.phase, self.epochs = phase, epochs

    def show(self, done: float, note: str) -> None:
        full = round(BAR_WIDTH * done / max(self.epochs, 1))
        self.text = f"{self.phase} {'█' * full}{'░' * (BAR_WIDTH - full)} {note}"
        if time.monotonic() - self.shown >= NOTEBOOK_SECONDS:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display  # type: ignore[import-not-found]

        self.shown = time.monotonic()
        content = {"text/plain": self.text}
        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)

    def stop(self) -> None:
        if self.text:
            self._draw()
