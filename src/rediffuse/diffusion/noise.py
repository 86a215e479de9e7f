"""Noise that belongs to a row: the same alone and in any batch.

A `torch.Generator` yields its numbers in order of the batch, so the recommendations for a user would depend on the
other users of the batch. Here each number is a hash of (seed, row key, draw, element): a counter-based generator
(Salmon et al., SC 2011) with the mixing function of SplitMix64 (Steele et al., OOPSLA 2014).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NO_FLOAT64 = {"mps"}  # devices without double precision
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit number


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser, on int64 tensors of any shape; arithmetic wraps around."""
    x = (x ^ _shift_right(x, 30)) * -4658895280553007687
    x = (x ^ _shift_right(x, 27)) * -7723592293110705685
    return x ^ _shift_right(x, 31)


def _wrap(x: int) -> int:
    """A Python integer as a signed 64-bit integer."""
    return (x + 2**63) % 2**64 - 2**63


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical (zero-filling) shift, which int64 tensors lack."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def row_keys(items: Tensor, lengths: Tensor) -> Tensor:
    """(B,) int64 hashes of histories (B, L): of their ``lengths`` (B,) real items in order, without the padding."""
    position = torch.arange(items.shape[1], device=items.device)
    each = mix(mix(items + 1) + position * _GOLDEN)
    return mix(torch.where(position < lengths[:, None], each, 0).sum(1))


class RowNoise:
    """A source of normal noise for the rows of one request: ``noise(like)`` has the shape of ``like``.

    Successive calls are successive draws, so each request needs its own.

    Args:
        keys: (B,) int64, one per row, from `row_keys`.
        seed: seed of the request.
        scale: standard deviation.
    """

    def __init__(self, keys: Tensor, seed: int, scale: float = 1.0) -> None:
        keys = keys.cpu() if keys.device.type in NO_FLOAT64 else keys
        self.keys = mix(keys ^ mix(torch.tensor(_wrap(seed + _GOLDEN), device=keys.device)))
        self.draw, self.scale = 0, scale

    def __call__(self, like: Tensor) -> Tensor:
        """(B, ...) noise in the dtype of ``like``; element j of a row depends on j, not on the size of the row."""
        self.draw += 1
        count = like[0].numel()
        stream = mix(self.keys + _wrap(self.draw * _GOLDEN))
        bits = mix(stream[:, None] + torch.arange(1, count + 1, device=self.keys.device) * _GOLDEN)
        # Two uniforms from one 64-bit hash, then Box & Muller 1958; the first must not be zero.
        first = ((bits & 0xFFFFFFFF).double() + 0.5) * 2.0**-32
        second = _shift_right(bits, 32).double() * 2.0**-32
        normal = (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()
        return (self.scale * normal).to(like.dtype).to(like.device).view(like.shape)
