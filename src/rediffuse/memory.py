"""Measuring the peak of memory use, and keeping freed memory for reuse."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


class PeakMemory:
    """The peak of memory use since this object was created.

    With a GPU, the memory of its tensors; otherwise the resident memory of this process, which includes the interpreter
    and everything loaded before.
    """

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        # Without this reset, the system reports the peak since the process started.
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.known = True
        except OSError:
            self.known = False

    def mib(self) -> int | None:
        """The peak in MiB, rounded; None if the system does not report it (not Linux, or no permission)."""
        if self.cuda:
            return round(torch.cuda.max_memory_allocated() / 2**20)
        if not self.known:
            return None
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next((round(int(line.split()[1]) / 1024) for line in status if line.startswith("VmHWM:")), None)


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Make glibc keep freed memory instead of returning it to the system; on other systems than Linux, do nothing.

    A training step allocates and frees the same tens of megabytes again and again. Requesting fresh pages every time
    costs as much as a matrix product.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(trim_threshold, 1 << 30)
            libc.mallopt(mmap_threshold, 32 << 20)
    yield
