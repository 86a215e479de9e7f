"""Where a model computes: on the CPU, or on an accelerator that torch finds."""

from __future__ import annotations

import os

import torch

from rediffuse.errors import ConfigError, did_you_mean

AUTO = "auto"


def resolve(device: str | torch.device) -> torch.device:
    """The device of that name.

    A device of CUDA then multiplies in full single precision, for the whole process: cuDNN's recurrent networks would
    round to ten bits (TF32), which changes lists.

    Args:
        device: ``auto`` (the accelerator that torch finds, otherwise the CPU), ``cpu``, or the kind of an accelerator,
            alone or with a number: ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: torch finds no such device; names those that it finds.
    """
    name, found, kind = str(device), available(), _accelerator()
    if name == AUTO:
        name = kind or "cpu"
    if name == kind:
        # Each process of a launcher has a device of its own.
        number = int(os.environ.get("LOCAL_RANK") or torch.empty(0, device=kind).device.index)
        name = f"{kind}:{number % torch.accelerator.device_count()}"
    if name in found:
        if kind == "cuda" and name != "cpu":
            torch.backends.cudnn.allow_tf32 = False
        return torch.device(name)
    if kind is None and name.partition(":")[0] in ("cuda", "mps", "xpu"):
        remedy = f"Use cpu or {AUTO}. For a GPU, torch needs the right build and a driver: see docs/install.md."
    else:
        remedy = did_you_mean(name, [AUTO, *found, *filter(None, [kind])])
    raise ConfigError(f"There is no device {name!r}: torch finds {' and '.join(found)}.", remedy)


def available() -> list[str]:
    """The devices that a model can compute on: cpu, then those of the accelerator, ``cuda:0`` for example."""
    kind = _accelerator()
    return ["cpu"] if kind is None else ["cpu", *(f"{kind}:{n}" for n in range(torch.accelerator.device_count()))]


def description(device: torch.device) -> str:
    """The device, with the name of the hardware where torch knows it: "cuda:0 (NVIDIA H200)"."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _accelerator() -> str | None:
    """The kind of accelerator that torch finds, or None."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return None if found is None else found.type
