"""Several processes that do one thing together, as ``accelerate launch`` and ``torchrun`` start them.

In a process that is alone nothing here costs or changes anything. Where there are several, the functions that say so
are collective: every process calls them, in the same order.
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
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState
from numpy.typing import NDArray
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from rediffuse import launchers
from rediffuse.errors import ConfigError, RediffuseError, RunError

# Seconds that a process has to end by itself when it is told to; launchers kill after 30.
_PATIENCE = 5.0


def no_accelerator() -> bool:
    """Whether there is only a CPU; Accelerate must be told so to let several processes share it."""
    return not torch.accelerator.is_available()


def join() -> None:
    """Meet the other processes, if a launcher started any. Collective.

    Raises:
        ConfigError: the launcher started one process for several, or would start them again where that cannot work.
    """
    if launchers.left_alone():
        raise launchers.refused("SCRIPT")
    if may_be_restarted() and not (
        os.environ.get("GROUP_WORLD_SIZE") == "1" and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):
        # Each machine counts restarts by itself, so that processes cannot agree on where to meet again.
        raise ConfigError(
            "A launcher can start processes again (--max-restarts) on one machine alone.",
            "Leave that out; should a process fail, start the same command again, a training with --resume.",
        )
    met = count() > 1
    if restarted() and not dist.is_initialized():
        _meet_again()
    PartialState(cpu=no_accelerator())
    if count() > 1 and not met:
        atexit.register(_part)


def _part() -> None:
    """Leave the group as the interpreter ends, which threads that still work for the group would end with an abort."""
    gc.collect()  # networks, in cycles, hold the group and its threads
    dist.destroy_process_group()


def _meet_again() -> None:
    """Join a group whose members read no address that was left behind before the restart.

    The launcher's store outlives its workers, and torch looks up addresses there under the same names after a restart
    (github.com/pytorch/pytorch/issues/135712): members then wait for processes that are dead.
    """
    environment = os.environ
    own = PrefixStore(f"restart {environment['TORCHELASTIC_RESTART_COUNT']}", _launchers_store())
    size, rank = int(environment["WORLD_SIZE"]), int(environment["RANK"])
    dist.init_process_group("gloo" if no_accelerator() else None, store=own, rank=rank, world_size=size)


def _launchers_store() -> TCPStore:
    """What the launcher keeps for the processes it starts. It lasts as long as the launcher does."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, wait_for_workers=False)


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this is, from 0. Process 0 is the one that writes."""
    return dist.get_rank() if count() > 1 else 0


def may_be_restarted() -> bool:
    """Whether a launcher will start the processes again if one of them fails (``torchrun --max-restarts``)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0


def restarted() -> bool:
    """Whether it has done so."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def leave_word(word: str) -> None:
    """Tell those that the launcher may start after these processes; nobody else hears of it."""
    if may_be_restarted():
        _launchers_store().set(word, "")


def word_was_left(word: str) -> bool:
    """Whether processes that this launcher started before these left that word."""
    return restarted() and _launchers_store().check([word])


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
        raise failed or RunError("Process 0 of this job failed.", "See what it said.")


@contextlib.contextmanager
def together(remedy: str) -> Iterator[None]:
    """While this lasts, that another process has ended is an error that says so, not a traceback of a network.

    Args:
        remedy: what to do then, as an instruction.

    Raises:
        RunError: it has.
    """
    if count() == 1:
        yield
        return
    lost = RunError(
        "Another of the processes of this job has ended.",
        "See what it said above; where it said nothing, the system may have killed it for its memory. " + remedy,
    )
    with _ended_by_launcher(lost):
        try:
            yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "onnection" in str(error) or "gloo" in str(error)):
                raise
            raise lost from error


@contextlib.contextmanager
def _ended_by_launcher(lost: RunError) -> Iterator[None]:
    """While this lasts, SIGTERM, by which a launcher stops the processes that are left, raises ``lost``.

    Python gets to raise it between two instructions, and not while it waits for other processes within one. A thread,
    which the system wakes, then says it instead and ends the process.
    """
    if threading.current_thread() is not threading.main_thread():  # no other may listen
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise lost

    def watch() -> None:
        while number := heard.recv(1):
            if number[0] == signal.SIGTERM and not left.wait(_PATIENCE):
                print(f"Error: {lost}", file=sys.stderr, flush=True)
                os._exit(1)

    left = threading.Event()
    heard, told = socket.socketpair()
    told.setblocking(False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    handler, descriptor = signal.signal(signal.SIGTERM, stop), signal.set_wakeup_fd(told.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, handler)
        left.set()
        told.close()
        watcher.join()
        heard.close()


def _reduced(tensor: torch.Tensor, how: Any) -> torch.Tensor:
    if dist.get_backend() == "nccl":  # which moves what is on a GPU alone
        tensor = tensor.cuda()
    dist.all_reduce(tensor, op=how)
    return tensor.cpu()
