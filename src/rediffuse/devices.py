"""Where a model computes: on the CPU, or on an accelerator that torch finds."""

from __future__ import annotations

import torch

from rediffuse.errors import ConfigError, did_you_mean

AUTO = "auto"
HELP = "auto (the accelerator that torch finds, otherwise cpu), cpu, cuda, cuda:1, mps, ..."


def available() -> list[str]:
    """The devices that a model can compute on: cpu, then those of the accelerator, "cuda:0" for example."""
    kind = _accelerator()
    return ["cpu"] if kind is None else ["cpu", *(f"{kind}:{n}" for n in range(torch.accelerator.device_count()))]


def resolve(device: str | torch.device) -> torch.device:
    """The device of that name.

    Args:
        device: ``auto`` (the accelerator that torch finds, otherwise the CPU), ``cpu``, or the kind of an accelerator,
            alone or with a number: ``cuda``, ``cuda:1``, ``mps``.

    Raises:
        ConfigError: torch finds no such device; names those that it finds.
    """
    found, kind = available(), _accelerator()
    if not isinstance(device, str | torch.device):
        raise ConfigError(f"device is {type(device).__name__} {device!r}.", f"Give one of {AUTO}, {', '.join(found)}.")
    name = str(device).strip().lower()
    if name == "cpu" or (kind is None and name == AUTO):
        return torch.device("cpu")
    if name in (AUTO, kind):
        return torch.device(str(kind), torch.accelerator.current_device_index())
    if name in found:
        return torch.device(name)
    known = {str(torch.device(kind)) for kind in ("cuda", "mps", "xpu")}
    if name.partition(":")[0] in known and kind is None:
        remedy = (
            "Use cpu or auto. If there is such a device, install the build of torch and the driver for it, and see "
            "what `rediffuse doctor` finds."
        )
    else:
        remedy = did_you_mean(name, [AUTO, *found, *([] if kind is None else [kind])])
    raise ConfigError(f"There is no device {name!r}: torch finds {' and '.join(found)}.", remedy)


def description(device: torch.device) -> str:
    """The device, with the name of its hardware where torch knows it: "cuda:0 (NVIDIA H200)"."""
    properties = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return str(device) if properties is None else f"{device} ({properties})"


def _accelerator() -> str | None:
    """The kind of accelerator that torch finds, or None."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return None if found is None else found.type
