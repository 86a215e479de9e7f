"""`estimate`: about how long a training takes on this machine, and how much memory, from a few timed steps."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rediffuse import devices, distributed
from rediffuse.arguments import require_integer, require_number
from rediffuse.config import ModelConfig
from rediffuse.data.dataset import Dataset
from rediffuse.data.split import Split, as_split
from rediffuse.memory import PeakMemory, keep_freed_memory
from rediffuse.models import model_class
from rediffuse.models.base import Model
from rediffuse.models.placement import move
from rediffuse.runs.run_folder import Run
from rediffuse.seeds import seed_torch
from rediffuse.training.loop import Trainer
from rediffuse.training.train import plan

SECONDS = 5.0  # of timed steps per phase
STEPS = 30  # most timed steps per phase
WARM_UP = 2  # steps that are not timed: the first ones allocate and compile
USERS = 2000  # most users of the timed validation


@dataclass(frozen=True)
class PhaseEstimate:
    """The estimate of one phase.

    Attributes:
        phase: its name.
        epochs: most epochs; early stopping usually ends before them.
        steps: batches of an epoch.
        timed: how many of them were timed.
        epoch_seconds: of one epoch without validation.
        validation_seconds: of one validation; None where none chooses the weights.
        validate_every: epochs between validations.
    """

    phase: str
    epochs: int
    steps: int
    timed: int
    epoch_seconds: float
    validation_seconds: float | None
    validate_every: int

    @property
    def most_seconds(self) -> float:
        """Seconds of all epochs and validations."""
        validations = -(-self.epochs // self.validate_every)
        return self.epochs * self.epoch_seconds + validations * (self.validation_seconds or 0.0)


@dataclass(frozen=True)
class Estimate:
    """About what a training will take on this machine.

    Attributes:
        model: name of the model.
        fit_seconds: of what the model learns in closed form, which was done in full.
        phases: the phases of training by gradient; none for a model in closed form.
        validation_seconds: of one validation of a model in closed form; None for the others.
        memory_mib: the peak of memory so far; None if the system does not report it.
        device: where it runs.
        max_minutes: the time limit of the training.
    """

    model: str
    fit_seconds: float
    phases: list[PhaseEstimate]
    validation_seconds: float | None
    memory_mib: int | None
    device: str
    max_minutes: float | None = None

    @property
    def most_seconds(self) -> float:
        """Seconds at most, of all epochs of all phases or to the time limit."""
        most = self.fit_seconds + sum(phase.most_seconds for phase in self.phases) + (self.validation_seconds or 0.0)
        return most if self.max_minutes is None else min(most, 60 * self.max_minutes)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-able value."""
        return asdict(self) | {"most_seconds": self.most_seconds}


def estimate(
    model: str | type[Model],
    data: Split | Dataset | str | Path,
    *,
    preset: str | None = None,
    config: dict[str, Any] | ModelConfig | None = None,
    seed: int = 0,
    max_minutes: float | None = None,
    phases_from: dict[str, str | Path | Run] | None = None,
    device: str | torch.device = devices.AUTO,
) -> Estimate:
    """Measure a few training steps and a validation of a model, and estimate what its training takes. Writes nothing.

    The steps are spread over an epoch. A phase is measured with weights that the phases before it have hardly trained.
    A model in closed form is fitted in full, since no part of a fit tells how long the whole takes.

    Args: as `rediffuse.train`.

    Raises:
        ConfigError, DataError, TrainingError: as `rediffuse.train`, before its first epoch.
    """
    distributed.init()
    memory = PeakMemory(devices.resolve(device))
    seed = require_integer("seed", seed, minimum=None)
    if max_minutes is not None:
        max_minutes = require_number("max_minutes", max_minutes)
    planned = plan(model_class(model), as_split("data", data), preset, config, seed, phases_from)
    trainer = planned.trainer(Path(), max_minutes=max_minutes, device=device)
    network = trainer.model
    with torch.random.fork_rng(), keep_freed_memory():
        move(network, trainer.device)
        began = time.perf_counter()
        seed_torch(seed, "fit")
        network.fit(trainer.data)
        fitted = time.perf_counter() - began
        phases = [_measure(trainer, index, phase) for index, phase in enumerate(trainer.phases)]
        validation = None if trainer.phases else _validation_seconds(trainer)
    return Estimate(network.name, fitted, phases, validation, memory.mib(), str(trainer.device), max_minutes)


def _measure(trainer: Trainer, index: int, phase: str) -> PhaseEstimate:
    trainer.state.phase, trainer.state.epoch = index, 0
    _, _, network, stepper = trainer.begin_phase(phase)
    began = time.perf_counter()
    batches = trainer.batches(phase, 0)
    made = time.perf_counter() - began
    trainer.model.train()
    # Spread over the epoch, because batches differ in width.
    places = np.unique(np.linspace(0, len(batches) - 1, WARM_UP + STEPS).astype(int))
    np.random.default_rng(0).shuffle(places)
    timed = 0
    began = time.perf_counter()
    for count, place in enumerate(places):
        if count == min(WARM_UP, len(places) - 1):
            began, timed = time.perf_counter(), 0
        trainer.try_step(network, stepper, batches, phase, int(place))
        timed += 1
        if time.perf_counter() - began > SECONDS:
            break
    epoch = made + (time.perf_counter() - began) / timed * len(batches)
    chosen = trainer.model.chosen_by_ranking(phase)
    validation = _validation_seconds(trainer) if chosen else None
    return PhaseEstimate(phase, trainer.epochs, len(batches), timed, epoch, validation, trainer.config.validate_every)


def _validation_seconds(trainer: Trainer) -> float | None:
    """Seconds of a validation, from that of some users; None without a validation subset."""
    whole = trainer.view.valid
    if not len(whole.users):
        return None
    rows = np.linspace(0, len(whole.users) - 1, min(USERS, len(whole.users))).astype(int)
    began = time.perf_counter()
    trainer.validate(whole.take(rows))
    return (time.perf_counter() - began) * len(whole.users) / len(rows)
