"""What a machine is given to compute with: number formats and memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch


def resolve_precision(wanted: str, device: torch.device) -> str:
    """ "auto" is bf16 where the device multiplies it in hardware, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Without AVX512-BF16 or AMX a CPU converts back and forth and is slower than in fp32.
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bf16 if ``precision`` says so; sums, norms and the optimiser stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Ask glibc to reuse freed memory rather than give it back to the system.

    A training step frees and takes the same tens of megabytes again and again; fetching fresh pages each time costs
    as much as a matrix product. Elsewhere than on Linux this does nothing.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(trim_threshold, 1 << 30)
            libc.mallopt(mmap_threshold, 32 << 20)
    yield
