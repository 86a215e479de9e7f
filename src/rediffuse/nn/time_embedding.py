"""Sinusoidal embedding of diffusion timesteps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_embedding(t: Tensor, size: int, max_period: float = 10_000.0) -> Tensor:
    """[cos(t w) || sin(t w)] with w_k = max_period^(-k / half), half = size // 2.

    Vaswani et al. 2017, as used for timesteps by Ho et al. 2020 (DDPM). An odd ``size`` ends in a zero.

    Args:
        t: timesteps of any shape (...), integer or float.
        size: width of the embedding.

    Returns:
        (..., size) float32.
    """
    half = size // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device) / half)
    angle = t.float()[..., None] * frequencies
    parts = [angle.cos(), angle.sin()]
    if size % 2:
        parts.append(torch.zeros_like(angle[..., :1]))
    return torch.cat(parts, dim=-1)


def ddpm_embedding(t: Tensor, size: int) -> Tensor:
    """[sin(t w) || cos(t w)] with w_k = 10000^(-k / (half - 1)), as in DDPM's code.

    Shapes as for `sinusoidal_embedding`.
    """
    half = size // 2
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half, device=t.device) / max(half - 1, 1))
    angle = t.float()[..., None] * frequencies
    parts = [angle.sin(), angle.cos()]
    if size % 2:
        parts.append(torch.zeros_like(angle[..., :1]))
    return torch.cat(parts, dim=-1)
