"""AdamW, and optimisers for tables so large that a step must touch only the rows that a batch has read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8
# Adagrad's steps shrink with all that a row has ever seen, where Adam forgets: at Adam's rate it hardly moves. Chosen
# on validation data (docs/scaling.md).
ADAGRAD_RATE = 10.0


class Optimizer(torch.optim.AdamW):
    """AdamW for most parameters; for groups with ``rowwise``, a second moment per row, of the rows with a gradient.

    - ``adagrad``: row-wise Adagrad (Mudigere et al., ISCA 2022): a row's rate falls with the sum, over all its steps,
      of its mean squared gradient. Its state is one number a row.
    - ``adam``: Adam with one second moment a row and the first moment whole (FBGEMM's "partial row-wise Adam"). Moments
      of rows without a gradient stay as they are, as in torch's SparseAdam. Its state is a row and a number a row.

    Weight decay reaches those rows alone.

    Args:
        groups: as torch's optimisers take them; ``rowwise`` is "adagrad" or "adam" where gradients are sparse.
        learning_rate: learning rate of groups without their own.
        weight_decay: decoupled.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], learning_rate: float, weight_decay: float) -> None:
        super().__init__(groups, lr=learning_rate, weight_decay=weight_decay, betas=BETAS, eps=EPSILON, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for table in group["params"]:
                if group.get("rowwise") and table.grad is not None:
                    self._step_rows(table, group)
                    table.grad = None  # AdamW passes over it
        super().step(closure)

    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        rows, values = _summed(table.grad)  # type: ignore[arg-type]
        state, rate = self.state[table], group["lr"]
        if not state:
            state["step"] = torch.zeros((), device=table.device)
            state["row_moment"] = torch.zeros(len(table), device=table.device)
            if group["rowwise"] == "adam":
                state["exp_avg"] = torch.zeros_like(table)
        state["step"] += 1
        squares = values.square().mean(1)
        if group["rowwise"] == "adagrad":
            state["row_moment"][rows] = squares = state["row_moment"][rows] + squares
            change = values / (squares.sqrt() + EPSILON)[:, None]
            rate = rate * ADAGRAD_RATE
        else:
            first, second = BETAS
            state["exp_avg"][rows] = change = state["exp_avg"][rows].lerp(values, 1 - first)
            state["row_moment"][rows] = squares = state["row_moment"][rows].lerp(squares, 1 - second)
            step = float(state["step"])
            scale = (squares / (1 - second**step)).sqrt() + EPSILON
            change = change / ((1 - first**step) * scale)[:, None]
        if group["weight_decay"]:
            change = change + group["weight_decay"] * table[rows]
        table.index_add_(0, rows, change, alpha=-rate)


def _summed(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (r,) of a sparse gradient and their sums (r, d): what `coalesce` finds in twice the time."""
    rows, values = gradient._indices()[0], gradient._values()
    order = torch.argsort(rows, stable=True)
    distinct, counts = torch.unique_consecutive(rows[order], return_counts=True)
    return distinct, F.embedding_bag(order, values, counts.cumsum(0) - counts, mode="sum")
