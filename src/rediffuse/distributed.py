"""Several processes that work on one job, as ``torchrun`` and ``accelerate launch`` start them.

In a single process nothing here costs or changes anything. Functions marked *collective* must be called by every
process, in the same order. torch and numpy are imported on first use, so that the command line can look at the
environment without them.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediffuse import forks
from rediffuse.errors import ConfigError, RediffuseError, RunError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

# Seconds that a process has to end after SIGTERM; launchers kill it after 30.
_GRACE_SECONDS = 5.0
# Bytes of a path on Linux.
_LONGEST_PATH = 4096


class LostProcessError(RunError):
    """Another process of a distributed job has ended."""


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return _integer("WORLD_SIZE", 1) > 1


def _integer(name: str, default: int) -> int:
    """A variable of the environment as an integer of at least 0.

    Raises:
        ConfigError: it is something else.
    """
    text = os.environ.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise ConfigError(
            f"The environment has {name}={text[:40]}.", "Unset it, or give an integer of at least 0; launchers set it."
        )
    return int(text)


def check_launcher() -> None:
    """Refuse launches that cannot work.

    Raises:
        ConfigError: ``accelerate launch`` started one process for several, or a launcher would restart processes.
    """
    # Without GPUs, `accelerate launch` starts one process and leaves only a rendezvous port in its environment.
    if "ACCELERATE_USE_CPU" in os.environ and "MASTER_PORT" in os.environ and "RANK" not in os.environ:
        raise ConfigError(
            "accelerate launch started one process instead of several, as it does without several GPUs.",
            "Use torchrun --nproc-per-node N -m rediffuse ..., or accelerate launch --multi_gpu, "
            "which works without GPUs too.",
        )
    rank, size = _integer("RANK", 0), _integer("WORLD_SIZE", 1)
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        _integer(name, 0)
    if size < 1 or rank >= max(size, 1):
        raise ConfigError(
            f"The environment has RANK={rank} and WORLD_SIZE={size}.",
            "Set RANK from 0 to WORLD_SIZE - 1, or unset both; launchers set them.",
        )
    # After a restart, torch reads addresses of dead processes from the launcher's store (pytorch issue 135712).
    if _integer("TORCHELASTIC_MAX_RESTARTS", 0) > 0:
        raise ConfigError(
            "Restarts by the launcher (--max-restarts) are not supported.",
            "Leave the option out. If a process fails, run the same command again, a training with --resume.",
        )


def init() -> None:
    """Join the process group, if a launcher started several processes. Collective.

    Raises:
        ConfigError: as `check_launcher`.
    """
    check_launcher()
    needed = ("RANK", "MASTER_ADDR", "MASTER_PORT")
    mpi = any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"))
    if launched() and not mpi and (missing := [name for name in needed if name not in os.environ]):
        raise ConfigError(
            f"The environment has WORLD_SIZE={os.environ['WORLD_SIZE']} and no {', '.join(missing)}.",
            "Start several processes with torchrun; without a launcher, unset WORLD_SIZE.",
        )
    forks.enter()
    from accelerate import PartialState

    initialized = world_size() > 1
    PartialState(cpu=cpu_only())
    if world_size() > 1 and not initialized:
        atexit.register(_destroy_group)


def _destroy_group() -> None:
    """Leave the group as the interpreter exits; threads that still work for the group would abort the process."""
    import torch.distributed as dist

    gc.collect()  # networks, in cycles, hold the group and its threads
    dist.destroy_process_group()


def cpu_only() -> bool:
    """Whether there is no accelerator. Accelerate must know, or several processes cannot share the CPU."""
    import torch

    return not torch.accelerator.is_available()


def world_size() -> int:
    """Number of processes."""
    if "torch" not in sys.modules:
        return 1
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0. Process 0 is the main process: it alone writes."""
    if world_size() == 1:
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def all_reduce_mean(value: float) -> float:
    """Mean of ``value`` over the processes, the same in all of them. Collective."""
    if world_size() == 1:
        return value
    import torch

    return float(_all_reduce(torch.tensor(value, dtype=torch.float64), "SUM") / world_size())


def any_rank(flag: bool) -> bool:
    """Whether ``flag`` is true in any process. Collective."""
    if world_size() == 1:
        return flag
    import torch

    return bool(_all_reduce(torch.tensor(int(flag)), "MAX"))


def all_reduce_max(*arrays: NDArray[Any]) -> None:
    """Replace each element of the arrays by its maximum over the processes. Collective.

    Where one process filled in an element and all others hold the smallest value of its type, this merges their work
    without arithmetic: the result is the same to the bit as that of one process.
    """
    if world_size() > 1:
        import numpy as np
        import torch

        for array in arrays:
            array[...] = _all_reduce(torch.from_numpy(np.ascontiguousarray(array)), "MAX").numpy()


def broadcast(tensor: torch.Tensor) -> None:
    """Replace a tensor, on the device of the training, by that of process 0. Collective."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.broadcast(tensor, 0)


def all_gather_rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The rows (n, ...) of all processes, in order of rank, which may have different n. Collective.

    Args:
        tensors: with the same n, on the device of the training. They are sent padded to the largest n.
    """
    if world_size() == 1:
        return list(tensors)
    import torch

    sizes: list[int] = all_gather(torch.tensor(len(tensors[0]), device=tensors[0].device)).tolist()
    most, gathered = max(sizes), []
    if not most:
        return list(tensors)
    for tensor in tensors:
        padded = tensor.new_zeros(most, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = zip(all_gather(padded), sizes, strict=True)
        gathered.append(torch.cat([part[:size] for part, size in parts]))
    return gathered


def all_gather(tensor: torch.Tensor) -> torch.Tensor:
    """(processes, ...) the tensors (...) of all processes, of one shape, on the device of this one's. Collective."""
    if world_size() == 1:
        return tensor[None]
    import torch
    import torch.distributed as dist

    sent = tensor.contiguous().cuda() if dist.get_backend() == "nccl" else tensor.contiguous()
    received = [torch.empty_like(sent) for _ in range(world_size())]
    dist.all_gather(received, sent)
    return torch.stack(received).to(tensor.device)


def main_process_first(work: Callable[[], None]) -> None:
    """Run ``work`` in process 0 while the others wait. Collective.

    Raises:
        RediffuseError: process 0 raised it; the others raise a RunError.
    """
    failed: RediffuseError | None = None
    if rank() == 0:
        try:
            work()
        except RediffuseError as error:
            failed = error
    if any_rank(failed is not None):
        raise failed or RunError("Process 0 of this job failed.", "See its error message.")


def first_of_host(work: Callable[[], Path]) -> Path:
    """Run ``work`` in the first process of each host, and give its path to all processes of the host. Collective.

    A process without LOCAL_RANK, which torchrun and Accelerate set, counts as a host of its own.

    Raises:
        RediffuseError: ``work`` raised it; the others raise a RunError.
    """
    import numpy as np

    failed: RediffuseError | None = None
    local, path = _integer("LOCAL_RANK", 0), b""
    if local == 0:
        try:
            path = os.fsencode(work())
        except RediffuseError as error:
            failed = error
    if any_rank(failed is not None):
        raise failed or RunError("The first process of a host of this job failed.", "See its error message.")
    paths = np.zeros((world_size(), _LONGEST_PATH), dtype=np.uint8)
    paths[rank(), : len(path)] = np.frombuffer(path, dtype=np.uint8)
    all_reduce_max(paths)
    # Launchers number the processes of a host one after the other.
    found = Path(os.fsdecode(paths[rank() - local].tobytes().rstrip(b"\0")))
    if any_rank(not found.exists()):
        raise RunError(
            f"Process {rank()} of this job cannot read what the first process of its host wrote.",
            "Start the processes with torchrun, which numbers those of a host one after the other.",
        )
    return found


@contextlib.contextmanager
def fail_together(remedy: str) -> Iterator[None]:
    """Turn the loss of another process into one clear error instead of a traceback of the network.

    Args:
        remedy: what to do then, as an instruction.

    Raises:
        LostProcessError: another process has ended.
    """
    if world_size() == 1:
        yield
        return
    import torch.distributed as dist

    lost = LostProcessError(
        "Another process of this job has ended.",
        "See its error message above. If there is none, the system may have killed it for lack of memory. " + remedy,
    )
    with _sigterm_raises(lost):
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "onnection" in str(error) or "gloo" in str(error)):
                raise
            raise lost from error


@contextlib.contextmanager
def _sigterm_raises(lost: RunError) -> Iterator[None]:
    """Raise ``lost`` on SIGTERM, with which a launcher stops the remaining processes.

    Python raises between two instructions, and not while one waits for other processes. A watcher thread, which the
    system wakes, then prints the error and ends the process.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise lost

    def watch() -> None:
        while number := received.recv(1):
            if number[0] == signal.SIGTERM and not finished.wait(_GRACE_SECONDS):
                print(f"Error: {lost}", file=sys.stderr, flush=True)
                os._exit(1)

    finished = threading.Event()
    received, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    handler, descriptor = signal.signal(signal.SIGTERM, stop), signal.set_wakeup_fd(wakeup.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        finished.set()
        wakeup.close()
        watcher.join()
        received.close()


def _all_reduce(tensor: torch.Tensor, operation: str) -> torch.Tensor:
    import torch.distributed as dist

    if dist.get_backend() == "nccl":  # NCCL moves GPU tensors only
        tensor = tensor.cuda()
    dist.all_reduce(tensor, op=getattr(dist.ReduceOp, operation))
    return tensor.cpu()
