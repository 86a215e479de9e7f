"""Propagation along the edges of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _SymmetricProduct(torch.autograd.Function):
    """A @ x for a symmetric sparse A. Its gradient is A @ grad: torch would transpose A at every step."""

    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        ctx.adjacency = adjacency
        return adjacency @ x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        return None, ctx.adjacency @ grad


def propagate(adjacency: Tensor, x: Tensor, layers: int) -> list[Tensor]:
    """[x, A x, A^2 x, ...]: ``layers`` + 1 tensors (nodes, d).

    Args:
        adjacency: symmetric sparse (nodes, nodes), for example from `bipartite_adjacency`. Not differentiated.
        x: (nodes, d) float32.
    """
    states = [x]
    for _ in range(layers):
        states.append(_SymmetricProduct.apply(adjacency, states[-1]))  # type: ignore[arg-type]
    return states
