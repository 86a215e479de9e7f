"""The environment that a run is trained in: versions and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

import torch

PACKAGES = (
    "rediffuse",
    "torch",
    "accelerate",
    "numpy",
    "scipy",
    "scikit-learn",
    "polars",
    "narwhals",
    "pydantic",
    "safetensors",
)


def environment() -> dict[str, Any]:
    """Versions, hardware and threads, as JSON-able values."""
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
