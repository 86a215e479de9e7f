"""Where a model computes what it answers."""

from __future__ import annotations

import warnings

import torch
from torch import nn

from rediffuse import devices
from rediffuse.errors import RediffuseWarning
from rediffuse.models.base import Model


def place(model: Model, device: str | torch.device) -> torch.device:
    """Move a model to a device; it, or a part of it, that computes with SciPy (`Model.on_cpu`) stays on the CPU.

    Returns:
        The device that it computes on.

    Raises:
        ConfigError: torch finds no such device.

    Warns:
        RediffuseWarning: a device was named, and the model computes on the CPU nevertheless.
    """
    found = devices.resolve(device)
    move(model, found)
    if model.device.type != found.type and device != devices.AUTO:
        warnings.warn(
            f"{model.name} computes with SciPy, on the CPU; the device {found} is not used.",
            RediffuseWarning,
            stacklevel=3,
        )
    return model.device


def move(module: nn.Module, device: torch.device) -> None:
    """Move a model or a part of one, as `Module.to`, without what stays on the CPU."""
    if isinstance(module, Model) and module.on_cpu:
        return
    for child in module.children():
        move(child, device)
    module._apply(lambda tensor: tensor.to(device), recurse=False)


def on_cpu(model: nn.Module) -> set[str]:
    """Names of the weights that `move` leaves on the CPU, of parts of a model."""
    return {
        f"{part}.{name}"
        for part, module in model.named_modules()
        if part and isinstance(module, Model) and module.on_cpu
        for name in module.state_dict()
    }
