"""Memory: the peak that was held, and keeping freed memory for reuse."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import torch


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


@contextlib.contextmanager
def keep_freed_memory() -> Iterator[None]:
    """RankingQuery glibc to reuse freed memory rather than give it back to the system.

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
