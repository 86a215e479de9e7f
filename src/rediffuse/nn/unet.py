"""SU-Net: a U-Net that denoises a short sequence of item vectors as if it were an image (Liu et al., CIKM 2023).

The M items are the channels of an image, and the d numbers of each item are its pixels, in a square. The network is a
small version of DDPM's (Ho et al. 2020): residual blocks, halvings on the way down, doublings on the way up, and
shortcuts between equal sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rediffuse.errors import ConfigError
from rediffuse.nn.time_embedding import ddpm_embedding

GROUPS = 8


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, plus the time; norm, SiLU, dropout, convolution; plus the input."""

    def __init__(self, inputs: int, outputs: int, time_size: int, dropout: float) -> None:
        super().__init__()
        self.norm_in, self.norm_out = _norm(inputs), _norm(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_size, outputs)
        self.drop = nn.Dropout(dropout)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm_in(x))) + self.time(F.silu(time))[:, :, None, None]
        return self.shortcut(x) + self.second(self.drop(F.silu(self.norm_out(h))))


class Attention(nn.Module):
    """Self-attention with one head over all pixels, plus the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))  # (B, pixels, channels)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(x.shape))


class Down(nn.Module):
    """Halve the side, after padding one pixel on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double the side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class SequentialUNet(nn.Module):
    """eps(x_t, t, condition) for M item vectors.

    Args:
        length: M.
        size: d, a square number whose root can be halved ``len(multipliers) - 1`` times.
        channels: channels of the first level, a multiple of 8.
        multipliers: factors of the channels, one per level.
        blocks: residual blocks per level on the way down; one more on the way up.
        dropout: in the residual blocks.
        condition_size: width of the condition vector; 0 for none.

    Raises:
        ConfigError: ``size`` or ``channels`` is not such a number.
    """

    def __init__(
        self,
        length: int,
        size: int,
        channels: int = 64,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 2,
        dropout: float = 0.1,
        condition_size: int = 0,
    ) -> None:
        super().__init__()
        self.side, halvings = math.isqrt(size), len(multipliers) - 1
        if self.side**2 != size or self.side % 2**halvings:
            step = 2**halvings
            sides = sorted({max(1, self.side // step) * step, (self.side // step + 1) * step})
            raise ConfigError(
                f"The U-Net cannot arrange {size} numbers as a square whose side is halved {halvings} times.",
                f"Use an embedding_size of {' or '.join(str(side**2) for side in sides)}, or fewer multipliers.",
            )
        if channels % GROUPS:
            raise ConfigError(f"The U-Net cannot have {channels} channels.", f"Use a multiple of {GROUPS}.")
        time_size = 4 * channels
        self.channels, self.condition_size = channels, condition_size
        self.time = nn.Sequential(nn.Linear(channels, time_size), nn.SiLU(), nn.Linear(time_size, time_size))
        if condition_size:
            layers = (nn.Linear(condition_size, time_size), nn.SiLU(), nn.Linear(time_size, time_size))
            self.condition = nn.Sequential(*layers)
        self.enter = nn.Conv2d(length, channels, 3, padding=1)
        widths = [channels * multiplier for multiplier in multipliers]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [channels], channels
        for level, wide in enumerate(widths):
            for _ in range(blocks):
                self.down.append(ResidualBlock(width, wide, time_size, dropout))
                width = wide
                skips.append(width)
            if level < halvings:
                self.down.append(Down(width))
                skips.append(width)
        self.middle = nn.ModuleList(
            [
                ResidualBlock(width, width, time_size, dropout),
                Attention(width),
                ResidualBlock(width, width, time_size, dropout),
            ]
        )
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(width + skips.pop(), wide, time_size, dropout))
                width = wide
            if level:
                self.up.append(Up(width))
        self.leave_norm = _norm(width)
        self.leave = nn.Conv2d(width, length, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, M, d) at timesteps (B,), with conditions (B, condition_size) or none -> (B, M, d)."""
        time = self.time(ddpm_embedding(t, self.channels))
        if condition is not None:
            time = time + self.condition(condition)
        h = self.enter(x.unflatten(2, (self.side, self.side)))
        skips = [h]
        for layer in self.down:
            h = layer(h) if isinstance(layer, Down) else layer(h, time)
            skips.append(h)
        first, attention, second = self.middle
        h = second(attention(first(h, time)), time)
        for layer in self.up:
            h = layer(h) if isinstance(layer, Up) else layer(torch.cat((h, skips.pop()), dim=1), time)
        return self.leave(F.silu(self.leave_norm(h))).flatten(2)
