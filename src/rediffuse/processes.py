"""Several processes that do one thing together, as ``accelerate launch`` and ``torchrun`` start them.

In a process that is alone nothing here costs or changes anything. Where there are several, the functions that say so
are collective: every process calls them, in the same order.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from numpy.typing import NDArray
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rediffuse.errors import RediffuseError, RunError, TrainingError

_LOST = (
    "Another of the processes that train together has ended.",
    "See what it said above; where it said nothing, the system may have killed it for its memory. The last checkpoint "
    "is kept: start the same command again with --resume.",
)


def no_accelerator() -> bool:
    """Whether there is only a CPU; Accelerate must be told so to let several processes share it."""
    return not torch.accelerator.is_available()


def join() -> None:
    """Meet the other processes, if a launcher started any. Collective."""
    met = count() > 1
    if restarted() and not dist.is_initialized():
        _meet_again()
    PartialState(cpu=no_accelerator())
    if count() > 1 and not met:
        # Threads that still wait for others when the interpreter ends would end it with an abort.
        atexit.register(dist.destroy_process_group)


def _meet_again() -> None:
    """Join a group whose members read no address that was left behind before the restart.

    The launcher's store outlives its workers, and torch looks up addresses there under the same names after a restart
    (github.com/pytorch/pytorch/issues/135712): members then wait for processes that are dead.
    """
    environment = os.environ
    size, rank = int(environment["WORLD_SIZE"]), int(environment["RANK"])
    store = TCPStore(environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), size, is_master=False)
    own = PrefixStore(f"restart {environment['TORCHELASTIC_RESTART_COUNT']}", store)
    dist.init_process_group("gloo" if no_accelerator() else None, store=own, rank=rank, world_size=size)


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0. Process 0 is the one that writes."""
    return dist.get_rank() if count() > 1 else 0


def restarted() -> bool:
    """Whether a launcher has started the processes again after one of them failed (``torchrun --max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def mean(value: float) -> float:
    """The mean of the processes' values, the same in all of them. Collective."""
    return (
        value
        if count() == 1
        else float(_reduced(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.SUM) / count())
    )


def any_of(flag: bool) -> bool:
    """Whether the flag is up in any of the processes. Collective."""
    return flag if count() == 1 else bool(_reduced(torch.tensor(int(flag)), dist.ReduceOp.MAX))


def largest(*arrays: NDArray[Any]) -> None:
    """Replace each element of the arrays by the largest that any process has there. Collective.

    Where each element was filled in by one process, and is the least of its type in all others, this brings the parts
    together without any arithmetic: to the bit as if one process had filled in all.
    """
    if count() > 1:
        for array in arrays:
            array[...] = _reduced(torch.from_numpy(np.ascontiguousarray(array)), dist.ReduceOp.MAX).numpy()


def first_alone(work: Callable[[], None]) -> None:
    """Let process 0 work, and the others wait for it. Collective.

    Raises:
        RediffuseError: process 0 did; in the others, a RunError.
    """
    failed: RediffuseError | None = None
    if index() == 0:
        try:
            work()
        except RediffuseError as error:
            failed = error
    if any_of(failed is not None):
        raise failed or RunError("Process 0 of this job cannot begin.", "See what it said.")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """While this lasts, that another process has ended is an error that says so, not a traceback of a network.

    Raises:
        TrainingError: it has.
    """
    if count() == 1:
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise TrainingError(*_LOST)

    # A launcher stops the processes that are left. Only the main thread may, and need, listen.
    listening = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop) if listening else None
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "onnection" in str(error) or "gloo" in str(error)):
            raise
        raise TrainingError(*_LOST) from error
    finally:
        if listening:
            signal.signal(signal.SIGTERM, before)


def _reduced(tensor: torch.Tensor, how: Any) -> torch.Tensor:
    if dist.get_backend() == "nccl":  # which moves what is on a GPU alone
        tensor = tensor.cuda()
    dist.all_reduce(tensor, op=how)
    return tensor.cpu()
