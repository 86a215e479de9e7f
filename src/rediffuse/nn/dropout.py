"""Dropout that does not dominate a training step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Largest error of a rounded rate, relative to the rate and to 1 - rate. All rates from 0.1 to 0.9 are within it.
TOLERANCE = 0.02


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero elements with probability ``rate`` and scale the others by 1 / (1 - rate).

    torch's CPU kernel draws one 32-bit number per element, serially, which costs more than the matrix products of a
    small transformer. Here, on a CPU, one 64-bit draw serves eight elements. So the rate is rounded to a multiple of
    1/256 (0.1 becomes 0.1016; 0.5 is exact), and the scaling uses the rounded rate. Where that would change the rate,
    or the share that is kept, by more than `TOLERANCE` of itself (0.001 would become 0, and 0.999 would become 1),
    torch's dropout is used, which is exact. So it is on other devices.
    """
    if not training or rate == 0:
        return x
    zeroed = round(rate * 256)
    if x.device.type != "cpu" or abs(zeroed / 256 - rate) > TOLERANCE * min(rate, 1 - rate):
        return F.dropout(x, rate, True)
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
