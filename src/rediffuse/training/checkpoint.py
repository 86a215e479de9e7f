"""Checkpoints: weights, optimiser state and progress in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rediffuse.runs.tensors import load_tensors, load_weights, save_tensors


def save_training(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, progress: dict[str, Any]
) -> None:
    """Save everything that the next training step depends on.

    Raises:
        StorageError: the file cannot be written.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state = optimizer.state_dict()["state"] if optimizer is not None else {}
    for index, values in state.items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
    save_tensors(path, tensors, progress)


def load_training(path: Path, model: nn.Module) -> tuple[dict[int, dict[str, Tensor]], dict[str, Any]]:
    """Load a checkpoint into the model; returns the optimiser state, for `restore_optimizer`, and the progress.

    Raises:
        RunError: the file is missing or damaged, or does not fit the model.
    """
    tensors, progress = load_tensors(path)
    load_weights(path, model, {name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    return state, progress


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Load the saved state into a new optimiser."""
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
