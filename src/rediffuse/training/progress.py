"""A progress bar with an estimate of the time left, on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress:
    """A bar over epochs, with the loss and the best validation metric as text. Prints nothing unless ``shown``."""

    def __init__(self, shown: bool) -> None:
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            disable=not shown,
            transient=True,
        )

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.bar.stop()

    def start(self, phase: str, epochs: int) -> None:
        self.task = self.bar.add_task(phase, total=epochs, note="")
        self.epochs = epochs

    def step(self, epoch: int, step: int, steps: int, loss: float, best: float | None) -> None:
        note = f"epoch {epoch + 1}/{self.epochs}  loss {loss:.4f}" + (f"  best {best:.4f}" if best else "")
        self.bar.update(self.task, completed=epoch + step / steps, note=note)
