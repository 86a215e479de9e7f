"""What a run was made with, and the memory it took."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("rediffuse", "torch", "accelerate", "numpy", "scipy", "polars", "narwhals", "pydantic", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, hardware and threads, ready for JSON."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def processor() -> str:
    """Name of the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


class PeakMemory:
    """The most memory held at once since this object was made: on a GPU what tensors took there, else the resident
    memory of this process, with the interpreter and all that was loaded before.
    """

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        # Without the reset the system's figure is the peak since the process began, which is not what was asked.
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.known = True
        except OSError:
            self.known = False

    def mib(self) -> int | None:
        """Rounded MiB; None where the system does not tell (elsewhere than on Linux, or not permitted)."""
        if self.cuda:
            return round(torch.cuda.max_memory_allocated() / 2**20)
        if not self.known:
            return None
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next((round(int(line.split()[1]) / 1024) for line in status if line.startswith("VmHWM:")), None)
