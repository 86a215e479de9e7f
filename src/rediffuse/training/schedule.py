"""Learning-rate schedules of torch, over the optimiser steps that a phase plans."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
    StepLR,
)

from rediffuse.config import ModelConfig
from rediffuse.errors import RediffuseWarning, RunError

EXPONENTIAL_END = 0.01  # what the schedule "exponential" leaves of the rate, where no option says how fast it falls


class Schedule:
    """The learning rate of every optimiser step of a phase: a warm-up, then the schedule of the options.

    Args:
        optimizer: each group has its full learning rate.
        config: options of the phase.
        steps_per_epoch: optimiser steps of an epoch.
        epochs: epochs that are planned; the schedule ends with them.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, config: ModelConfig, steps_per_epoch: int, epochs: int
    ) -> None:
        self.optimizer = optimizer
        self.steps = steps_per_epoch * epochs
        # Whether another number of epochs gives other rates.
        self.depends_on_steps = 0 < config.warmup < 1 or (
            config.learning_rate_schedule != "constant" and config.learning_rate_decay_every is None
        )
        warmup = round(config.warmup * self.steps) if config.warmup < 1 else round(config.warmup)
        if warmup and warmup >= self.steps:
            warnings.warn(
                f"The warm-up of {warmup:,} steps is longer than the training of {self.steps:,} steps, so the learning "
                "rate does not reach its full value.",
                RediffuseWarning,
                stacklevel=2,
            )
        schedulers: list[LRScheduler] = []
        if warmup:
            schedulers.append(LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup))
        schedulers.append(_after_warmup(optimizer, config, steps_per_epoch, max(1, self.steps - warmup)))
        self.scheduler = SequentialLR(optimizer, schedulers, [warmup]) if warmup else schedulers[0]

    @property
    def rate(self) -> float:
        """The learning rate of the next step, of a group without a factor."""
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("learning_rate_factor", 1.0)

    def step(self) -> None:
        """Set the rates of the next optimiser step. After the last planned step they stay."""
        if self.scheduler.last_epoch < self.steps - 1:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The epoch parameter in", UserWarning)  # torch's SequentialLR
                self.scheduler.step()

    def state(self) -> dict[str, Any]:
        """The state as a JSON-able value, for `restore`."""
        return {"steps": self.steps, "scheduler": self.scheduler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            RunError: the rates depend on the number of epochs, and another one was planned.
        """
        if self.depends_on_steps and state["steps"] != self.steps:
            raise RunError(
                f"The learning rates were planned for {state['steps']:,} steps, and now for {self.steps:,}.",
                "Resume with the same epochs: the schedule depends on them.",
            )
        self.scheduler.load_state_dict(state["scheduler"])
        for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_last_lr(), strict=True):
            group["lr"] = rate


def _after_warmup(
    optimizer: torch.optim.Optimizer, config: ModelConfig, steps_per_epoch: int, steps: int
) -> LRScheduler:
    every = None if config.learning_rate_decay_every is None else config.learning_rate_decay_every * steps_per_epoch
    decay = config.learning_rate_decay
    match config.learning_rate_schedule:
        case "linear":
            return LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        case "cosine":
            return CosineAnnealingLR(optimizer, steps)
        case "exponential":
            return ExponentialLR(optimizer, decay ** (1 / every) if every else EXPONENTIAL_END ** (1 / steps))
    return StepLR(optimizer, every, decay) if every else ConstantLR(optimizer, 1.0, total_iters=0)
