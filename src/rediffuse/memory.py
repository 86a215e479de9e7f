"""Measuring memory, what is free and the peak of its use; keeping freed memory for reuse; and running out of it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from rediffuse.errors import TrainingError

if TYPE_CHECKING:
    import torch


def free_memory() -> int:
    """Bytes of main memory that this process can still take: of the machine, and of its container if that has less."""
    free = psutil.virtual_memory().available
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no control groups, or no limit
            folder = Path("/sys/fs/cgroup")
            cache = _reclaimable((folder / limit).with_name("memory.stat"))
            free = min(free, int((folder / limit).read_text()) - int((folder / used).read_text()) + cache)
    return max(free, 0)


def _reclaimable(stat: Path) -> int:
    """Bytes of files in the cache of a control group, which count as used and are given back when needed."""
    lines = (line.split() for line in stat.read_text(encoding="utf-8").splitlines())
    return next((int(value) for name, value in lines if name in ("inactive_file", "total_inactive_file")), 0)


@contextlib.contextmanager
def out_of_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn a refused request for memory into an error of ours.

    Raises:
        TrainingError: ``what`` needs more memory than there is.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        said = str(error)
        refused = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "out of memory")
        if isinstance(error, RuntimeError) and not any(words in said for words in refused):
            raise
        first = (said.splitlines() or ["no more memory"])[0].removesuffix(".")
        raise TrainingError(f"{what} needs more memory than there is: {first}.", remedy) from error


LESS_MEMORY = "Lower batch_size, negatives, max_length or widths such as embedding_size; or use a larger machine."


class PeakMemory:
    """The peak of memory use since this object was created.

    On a GPU, the memory of its tensors; otherwise the resident memory of this process, which includes the interpreter
    and everything loaded before.

    Args:
        device: where the work is; None: on a GPU, if there is one.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        import torch  # not above: reading tables needs `free_memory` alone

        self.cuda = torch.cuda.is_available() if device is None else device.type == "cuda"
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
            import torch

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
