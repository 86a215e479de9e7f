"""Callbacks: functions of the caller that training calls after steps, after validations and at its end."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rediffuse.arguments import described
from rediffuse.errors import ConfigError
from rediffuse.models.base import Model

METHODS = ("on_step", "on_validation", "on_end")


@dataclass(frozen=True)
class TrainingEvent:
    """What a callback gets.

    Attributes:
        phase: the phase of the model that is trained; most models have one, "fit".
        epoch: number of the epoch, from 1.
        step: batches of this epoch that are done, in ``on_step``; otherwise 0.
        metric: the name of the one that selects the weights.
        best: its best value in this phase so far; None before the first validation.
        best_epoch: the epoch of the best value.
        loss: of the last batch in ``on_step``, the mean of the epoch in ``on_validation``, None in ``on_end``.
        metrics: all validation metrics, in ``on_validation``; otherwise empty.
        stopped: in ``on_end``, the sentence that says why training stopped.
        learning_rate: of the last optimiser step.
        model: the model itself, with the weights it is trained with; in ``on_end``, with those that are kept.
        folder: the run folder.
    """

    phase: str
    epoch: int
    step: int
    metric: str
    best: float | None
    best_epoch: int
    learning_rate: float
    model: Model
    folder: Path
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None


class Callbacks:
    """The callbacks of one training. Each has at least one of the methods ``on_step(event)``,
    ``on_validation(event)`` and ``on_end(event)``.

    Raises:
        ConfigError: an object has none of the methods, or one that cannot be called with an event.
    """

    def __init__(self, callbacks: Any) -> None:
        if isinstance(callbacks, str) or not isinstance(callbacks, Iterable):
            raise ConfigError(f"callbacks is {described(callbacks)}, not a list.", "Give a list: callbacks=[mine].")
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            _check(callback)

    def __call__(self, method: str, event: TrainingEvent) -> None:
        """Call a method of every callback that has it, in the order given."""
        for callback in self.callbacks:
            if (function := getattr(callback, method, None)) is not None:
                function(event)

    def has(self, method: str) -> bool:
        """Whether a callback has the method."""
        return any(getattr(callback, method, None) is not None for callback in self.callbacks)


def _check(callback: Any) -> None:
    example = "For example: class Log: def on_validation(self, event): print(event.epoch, event.metrics)."
    if isinstance(callback, type):
        raise ConfigError(
            f"A callback is {described(callback)}, not an object.", f"Give an object: {callback.__name__}()."
        )
    methods = {name: getattr(callback, name) for name in METHODS if getattr(callback, name, None) is not None}
    if not methods:
        raise ConfigError(
            f"A callback is {described(callback)}, which has none of the methods {', '.join(METHODS)}.", example
        )
    for name, method in methods.items():
        if not callable(method):
            raise ConfigError(f"{name} of a callback is {described(method)}, not a method.", example)
        try:
            inspect.signature(method).bind(None)
        except TypeError:
            raise ConfigError(
                f"{name} of {described(callback)} cannot be called with one argument, the event.", example
            ) from None
        except ValueError:  # a builtin without a signature
            pass
