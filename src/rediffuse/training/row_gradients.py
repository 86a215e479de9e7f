"""Sparse gradients of item tables, exchanged between processes as the rows that were read.

DDP would all-reduce them in a sparse form, which NCCL refuses. Here each process sums its rows and sends them once per
optimiser step by an all-gather of plain tensors, which every backend has.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rediffuse import distributed
from rediffuse.models.placement import on_cpu
from rediffuse.training.optimizer import summed_rows


def exclude_tables(model: nn.Module, groups: list[dict[str, Any]]) -> list[Tensor]:
    """Make DDP leave alone the tables with sparse gradients, which all processes then have from process 0. Collective.

    It leaves alone as well what `rediffuse.models.placement.move` leaves on the CPU.

    Args:
        model: not yet wrapped.
        groups: its parameter groups; ``rowwise`` is true for those tables.

    Returns:
        The tables, for `exchange_rows`; none in a single process.
    """
    if distributed.world_size() == 1:
        return []
    tables = [table for group in groups if group.get("rowwise") for table in group["params"]]
    ours = {id(table) for table in tables}
    named = model.named_parameters(remove_duplicate=False)  # DDP asks for a tied table by each of its names
    ignored = {name for name, p in named if id(p) in ours}
    # What stays on the CPU is the same in all processes, and NCCL could not send it.
    model._ddp_params_and_buffers_to_ignore = ignored | on_cpu(model)  # type: ignore[assignment]
    for table in tables:
        distributed.broadcast(table.data)
    return tables


@torch.no_grad()
def exchange_rows(tables: list[Tensor]) -> None:
    """Replace the gradient of each table by its mean over the processes, the same to the bit in all. Collective."""
    for table in tables:
        if table.grad is None:  # this process has read none
            rows, values = table.new_empty(0, dtype=torch.int64), table.new_empty(0, *table.shape[1:])
        else:
            rows, values = summed_rows(table.grad)
        numbers = torch.int32 if len(table) < 1 << 31 else torch.int64
        rows, values = distributed.all_gather_rows(rows.to(numbers), values)
        if len(rows):
            mean = values / distributed.world_size()
            table.grad = torch.sparse_coo_tensor(rows[None].long(), mean, table.shape, check_invariants=False)
