"""The denoiser of DiffRec: a multilayer perceptron over whole rows of a users x items matrix."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.nn.dropout import Dropout
from rediffuse.nn.time_embedding import sinusoidal_embedding


class Folded(NamedTuple):
    """The last layer followed by the first, without the items between them: A = W V (H, H) and a = W c (H,)."""

    weight: Tensor
    bias: Tensor


class RowDenoiser(nn.Module):
    """f(x, t) over rows of ``width`` numbers (Wang et al., SIGIR 2023, section 3.1; layers as released).

    x -> [L2 norm] -> dropout -> first layer, which also takes an embedding of t -> tanh, linear, tanh, ... -> last
    layer. In the notation of this file, z = W x is the item part of the first layer, ``inner`` maps z to the input g of
    the last layer, and the output is V g + c.

    Args:
        width: I, length of a row.
        hidden_sizes: widths from the narrowest to the widest, for example (200, 600): I -> 600 -> 200 -> 600 -> I.
        time_size: E, width of the embedding of t.
        steps: T.
        dropout: on x only.
        normalize: scale rows of x to length one first.
    """

    def __init__(
        self,
        width: int,
        hidden_sizes: Sequence[int],
        time_size: int,
        steps: int,
        dropout: float = 0.5,
        *,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.steps, self.time_size, self.normalize = steps, time_size, normalize
        self.drop = Dropout(dropout)
        outer = hidden_sizes[-1]
        # The first layer, for items and for time. The item part is stored (I, H), as an embedding bag reads it.
        self.first = nn.Parameter(torch.empty(width, outer))
        self.first_time = nn.Linear(time_size, outer)
        self.time = nn.Linear(time_size, time_size)
        widths = [*reversed(hidden_sizes), *hidden_sizes[1:]]
        between = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        self.between = nn.ModuleList(between)
        self.last = nn.Linear(outer, width)
        _normal(self.first, width + time_size, outer)
        _normal(self.first_time.weight, width + time_size, outer)
        for layer in (self.time, *between, self.last):
            _normal(layer.weight, layer.in_features, layer.out_features)
        for layer in (self.first_time, self.time, *between, self.last):
            nn.init.normal_(layer.bias, std=0.001)

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        """(B, I) at timesteps (B,) -> (B, I). ``shift`` is that of `inner`."""
        if self.normalize:
            x = F.normalize(x, dim=-1)
        return self.last(self.inner(self.drop(x) @ self.first, t, shift))

    def read(self, items: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
        """z = W x (B, H) of sparse rows: ``items`` and ``values`` (n,); row b begins at ``offsets[b]``."""
        if self.normalize:
            owners = torch.bucketize(torch.arange(len(items), device=items.device), offsets, right=True) - 1
            lengths = torch.zeros(len(offsets), device=items.device).index_add(0, owners, values.square()).sqrt()
            values = values / lengths.clamp_min(1e-12)[owners]
        return F.embedding_bag(items, self.first, offsets, mode="sum", per_sample_weights=self.drop(values))

    def inner(self, z: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        """z (B, H) at timesteps (B,) -> g (B, H). ``shift`` (B, H) is what a condition adds in the first layer."""
        every = sinusoidal_embedding(torch.arange(self.steps, device=t.device), self.time_size)
        every = every.to(self.time.weight.dtype)
        z = z if shift is None else z + shift
        h = torch.tanh(z + F.embedding(t, self.first_time(self.time(every))))
        for layer in self.between:
            h = torch.tanh(layer(h))
        return h

    def fold(self) -> Folded:
        """The products of weights that `reverse` needs, in O(I H^2)."""
        return Folded(self.first.T @ self.last.weight, self.last.bias @ self.first)

    def reverse(
        self,
        z: Tensor,
        folded: Folded,
        coef1: Sequence[float],
        coef2: Sequence[float],
        on_step: Callable[[int, Tensor], None] | None = None,
        inner: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The whole reverse chain in hidden space, for a network that predicts x_0, without noise.

        x_{t-1} = c1_t f(x_t, t) + c2_t x_t is linear in f and x, and so is z = W x. Each step is therefore
        z <- c1_t (A g + a) + c2_t z with g = inner(z, t): exact, in O(H^2) instead of O(I H). Rows must not be
        normalised, and there is no dropout.

        Args:
            z: (B, H) W x_T.
            folded: from `fold`.
            coef1, coef2: (T,) of the posterior mean, see `rediffuse.diffusion.NoiseSchedule`.
            on_step: called as on_step(t, g) at every step; ``last(g)`` is x_0_hat there.
            inner: in place of `inner`, for example a weighted sum of calls of it, whose weights add up to one.

        Returns:
            g (B, H) at t = 0: the output of the chain is ``last(g)``, because c1_0 = 1 and c2_0 = 0.
        """

        def at(step: int) -> Tensor:
            g = (inner or self.inner)(z, torch.full((len(z),), step, dtype=torch.int64, device=z.device))
            if on_step is not None:
                on_step(step, g)
            return g

        for step in reversed(range(1, self.steps)):
            z = coef1[step] * (at(step) @ folded.weight.T + folded.bias) + coef2[step] * z
        return at(0)


def _normal(weight: Tensor, inputs: int, outputs: int) -> None:
    """Xavier's normal initialisation, by the layer's own numbers of inputs and outputs."""
    nn.init.normal_(weight, std=(2 / (inputs + outputs)) ** 0.5)
