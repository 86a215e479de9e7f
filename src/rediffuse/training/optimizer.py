"""AdamW, with row-wise Adagrad for tables so large that a step must update only the rows that a batch has read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BETA1, EPSILON = 0.9, 1e-8
# Times the learning rate: Adagrad's steps shrink with the sum of all squared gradients, so at Adam's rate it hardly
# learns. Chosen on validation data (docs/scaling.md).
ADAGRAD_RATE = 10.0


class Optimizer(torch.optim.AdamW):
    """AdamW, and row-wise Adagrad (Mudigere et al., ISCA 2022) for tables with sparse gradients.

    Row-wise Adagrad divides a row's gradient by the root of the sum, over all its steps, of its mean squared gradient.
    Its state is one number per row. A step, and its weight decay, reach only the rows with a gradient.

    Args:
        groups: parameter groups, as torch's optimisers take them; ``rowwise`` is true for those with sparse gradients.
        learning_rate: learning rate of groups without their own.
        weight_decay: decoupled weight decay.
        beta2: decay of AdamW's average of squared gradients.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], learning_rate: float, weight_decay: float, beta2: float = 0.999
    ) -> None:
        betas = BETA1, beta2
        super().__init__(groups, lr=learning_rate, weight_decay=weight_decay, betas=betas, eps=EPSILON, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for table in group["params"]:
                if group.get("rowwise") and table.grad is not None:
                    self._step_rows(table, group)
                    table.grad = None  # so AdamW skips it
        super().step(closure)

    def _step_rows(self, table: Tensor, group: dict[str, Any]) -> None:
        rows, values = summed_rows(table.grad)  # type: ignore[arg-type]
        state = self.state[table]
        if not state:
            state["step"] = torch.zeros((), device=table.device)  # torch's Adam wants it when a state is loaded
            state["row_squares"] = torch.zeros(len(table), device=table.device)
        state["row_squares"][rows] = squares = state["row_squares"][rows] + values.square().mean(1)
        change = values / (squares.sqrt() + EPSILON)[:, None]
        if group["weight_decay"]:
            change = change + group["weight_decay"] * table[rows]
        table.index_add_(0, rows, change, alpha=-group["lr"] * ADAGRAD_RATE)


def summed_rows(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows (r,) of a sparse gradient and their sums (r, d), in half the time of `coalesce`."""
    rows, values = gradient._indices()[0], gradient._values()
    order = torch.argsort(rows, stable=True)
    distinct, counts = torch.unique_consecutive(rows[order], return_counts=True)
    return distinct, F.embedding_bag(order, values, counts.cumsum(0) - counts, mode="sum")
