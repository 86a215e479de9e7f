"""Checkpoints: weights, their average, optimiser state and progress in one file.

Neither writing nor reading one takes memory that grows with the model: tensors are written block by block, and copied
from the mapped file into the weights, the average and the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rediffuse.runs.tensors import load_tensors, load_weights, save_tensors


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds besides the weights; its tensors are mapped from the file.

    Attributes:
        progress: JSON-able.
        optimizer: the state of each parameter by its number, for `restore_optimizer`; empty where none was saved.
        average: the tensors of an `Averaging`; empty where none was saved.
    """

    progress: dict[str, Any]
    optimizer: dict[int, dict[str, Tensor]]
    average: dict[str, Tensor]


def save_training(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    progress: dict[str, Any],
    average: dict[str, Tensor] | None = None,
) -> None:
    """Save everything that the next training step depends on.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()["state"] if optimizer is not None else {}
    for index, values in state.items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average or {}).items()}
    save_tensors(path, tensors, progress)


def load_training(path: Path, model: nn.Module) -> Checkpoint:
    """Load the weights of a checkpoint into the model; returns the rest.

    Raises:
        RunError: the file is missing or damaged, or does not fit the model.
    """
    tensors, progress = load_tensors(path)
    load_weights(path, model, _named("model.", tensors))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _named("optimizer.", tensors).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    return Checkpoint(progress, state, _named("average.", tensors))


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Copy the saved state into a new optimiser."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # torch would keep the mapped tensors, and with them the file after the next checkpoint has replaced it.
    own = {
        index: {name: value.to(parameters[index].device, copy=True) for name, value in values.items()}
        for index, values in state.items()
    }
    optimizer.load_state_dict({"state": own, "param_groups": optimizer.state_dict()["param_groups"]})
