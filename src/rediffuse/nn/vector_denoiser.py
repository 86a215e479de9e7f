"""A conditional denoiser of single vectors: a small network of residual layers."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.nn.dropout import Dropout
from rediffuse.nn.time_embedding import sinusoidal_embedding


class VectorDenoiser(nn.Module):
    """f(x_t, t, c): linear maps of x_t and of an embedding of t, plus the condition -> residual layers -> linear.

    The last layer begins with zeros, so that the first estimate of x_0 is zero.

    Args:
        size: d, width of the vectors.
        hidden: H, width of the layers and of the condition.
        layers: number of residual layers, each LayerNorm -> linear -> SiLU -> dropout -> linear.
        dropout: in the layers.
    """

    def __init__(self, size: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.size, self.hidden = size, hidden
        self.first, self.time = nn.Linear(size, hidden), nn.Linear(hidden, hidden)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.SiLU(), Dropout(dropout), nn.Linear(hidden, hidden)
            )
            for _ in range(layers)
        )
        self.last = nn.Linear(hidden, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """(n, d) at timesteps (n,), under conditions (n, H) -> (n, d)."""
        embedded = sinusoidal_embedding(t, self.hidden).to(self.time.weight.dtype)
        h = self.first(x) + self.time(embedded) + condition
        for layer in self.layers:
            h = h + layer(h)
        return self.last(F.silu(h))
