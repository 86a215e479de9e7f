"""Dropout that does not dominate a training step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero elements with probability ``rate`` and scale the others by 1 / (1 - rate).

    torch's CPU kernel draws one 32-bit number per element, serially, which costs more than the matrix products of a
    small transformer. Here, on a CPU, one 64-bit draw serves eight elements. So the rate is rounded to a multiple of
    1/256 (0.1 becomes 0.1016; 0.5 is exact), and the scaling uses the rounded rate. Other devices use torch's dropout.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate, True)
    zeroed = round(rate * 256)
    draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= zeroed
    return x * kept.to(x.dtype).mul_(256 / (256 - zeroed))


class Dropout(nn.Module):
    """Module form of `dropout`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.rate, self.training)
