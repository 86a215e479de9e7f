"""Measure cross entropy over the catalogue, forward and backward: ours, torch's chunked one, and whole logits.

    OMP_NUM_THREADS=1 python -m benchmarks.measure.cross_entropy
    python -m benchmarks.measure.cross_entropy --device auto --dtype bfloat16 --targets 4096 --items 12101 1000000

Times are medians of calls in turns, so what slows the machine slows all: seconds of the CPU, which other work does
not lengthen, or of the clock on a GPU. Memory is the peak of a process that calls one of them, above what it holds
before the first call; on a GPU, what torch has allocated. ``torch, a loss per row`` is what importance weights need:
torch's weights are per item. Torch's functions need torch 2.13.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import measured_alone, out_option, write_result
from rediffuse import devices
from rediffuse.losses.softmax import softmax_cross_entropy
from rediffuse.memory import PeakMemory, keep_freed_memory

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "ours": lambda hidden, items, targets: softmax_cross_entropy(hidden, items, targets)[0],
    "torch": lambda hidden, items, targets: F.linear_cross_entropy(
        hidden, items, targets, options=torch.nn.LinearCrossEntropyOptions()
    ),
    "torch, a loss per row": lambda hidden, items, targets: F.linear_cross_entropy(
        hidden, items, targets, reduction="none", options=torch.nn.LinearCrossEntropyOptions()
    ).mean(),
    "whole logits": lambda hidden, items, targets: F.cross_entropy(hidden @ items.T, targets),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[12_101, 100_000])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="of the vectors")
    parser.add_argument("--targets", type=int, default=1024)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="cpu", help="auto, cpu, cuda, ...")
    parser.add_argument("--memory-of", choices=LOSSES, help=argparse.SUPPRESS)
    out_option(parser, "cross_entropy.json")
    arguments = parser.parse_args()
    device, dtype = devices.resolve(arguments.device), getattr(torch, arguments.dtype)
    if arguments.memory_of:
        tensors = inputs(arguments.items[0], arguments.sizes[0], arguments.targets, device, dtype)
        print(json.dumps({"mib": memory_of(LOSSES[arguments.memory_of], tensors)}))
        return
    cases = []
    for items in arguments.items:
        for size in arguments.sizes:
            found = measure(inputs(items, size, arguments.targets, device, dtype), arguments.turns)
            for name, row in found.items():
                words = ["--items", str(items), "--sizes", str(size), "--targets", str(arguments.targets)]
                words += ["--dtype", arguments.dtype, "--device", str(device), "--memory-of", name]
                row["peak_mib"] = measured_alone(*words)["mib"]
                cases.append({"items": items, "size": size, "loss": name} | row)
                print(cases[-1], flush=True)
    precision = {"float32": "fp32", "bfloat16": "bf16"}[arguments.dtype]
    report = {"targets": arguments.targets, "turns": arguments.turns, "seed": 0, "cases": cases}
    write_result(arguments.out, report, precision=precision, device=devices.description(device))


def inputs(items: int, size: int, targets: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Made-up hidden vectors (targets, size), an item table (items, size) and targets (targets,)."""
    generator = torch.Generator().manual_seed(0)
    hidden, table = (torch.randn(n, size, generator=generator).to(device, dtype) for n in (targets, items))
    wanted = torch.randint(items, (targets,), generator=generator).to(device)
    return hidden.requires_grad_(), table.mul_(0.1).requires_grad_(), wanted


def call(loss: Loss, tensors: tuple[Tensor, ...]) -> tuple[float, Tensor]:
    """The loss, and its gradient by the item table."""
    hidden, table, wanted = tensors
    hidden.grad = table.grad = None
    value = loss(hidden, table, wanted)
    value.backward()
    assert table.grad is not None
    return float(value.detach()), table.grad  # float waits for a GPU


def measure(tensors: tuple[Tensor, ...], turns: int) -> dict[str, dict[str, Any]]:
    """Seconds of each loss, and how far it and its gradient are from those of whole logits in double precision."""
    clock = time.process_time if tensors[0].device.type == "cpu" else time.perf_counter
    exact = tuple(each.detach().double().requires_grad_() if each.is_floating_point() else each for each in tensors)
    value, gradient = call(LOSSES["whole logits"], exact)
    seconds: dict[str, list[float]] = {name: [] for name in LOSSES}
    found: dict[str, dict[str, Any]] = {}
    with keep_freed_memory():
        for turn in range(turns + 1):
            for name, loss in LOSSES.items():
                started = clock()
                own, own_gradient = call(loss, tensors)
                if tensors[0].device.type != "cpu":
                    torch.accelerator.synchronize()
                if turn:  # the first one warms up
                    seconds[name].append(clock() - started)
                off = (own_gradient.double() - gradient).abs().max() / gradient.abs().max()
                found[name] = {"relative_error": abs(own / value - 1), "relative_error_of_gradient": float(off)}
    fastest = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        name: {
            "seconds": round(fastest[name], 4),
            "times_ours": round(fastest[name] / fastest["ours"], 2),
            **{key: float(f"{error:.1e}") for key, error in row.items()},
        }
        for name, row in found.items()
    }


def memory_of(loss: Loss, tensors: tuple[Tensor, ...]) -> int:
    """MiB that a loss and its gradients need at most, above the tensors that it is given."""
    if tensors[0].device.type == "cuda":
        held = torch.cuda.memory_allocated() / 2**20
        peak = PeakMemory()
    else:
        call(loss, small(tensors))  # loads what torch loads once
        peak = PeakMemory()
        held = peak.mib() or 0
    call(loss, tensors)
    return round((peak.mib() or 0) - held)


def small(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same kinds of tensors, of 64 rows."""
    hidden, table, wanted = tensors
    return (
        hidden.detach()[:64].clone().requires_grad_(),
        table.detach()[:64].clone().requires_grad_(),
        wanted[:64] % 64,
    )


if __name__ == "__main__":
    main()
