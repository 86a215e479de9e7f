"""Propagation along the edges of a graph."""

from __future__ import annotations

from torch import Tensor

from rediffuse.graphs.graph import Graph


def propagate(graph: Graph, x: Tensor, layers: int) -> list[Tensor]:
    """[x, A x, A^2 x, ...]: ``layers`` + 1 tensors (nodes, d).

    Args:
        graph: (nodes, nodes), with the values A.
        x: (nodes, d) float32.
    """
    states = [x]
    for _ in range(layers):
        states.append(graph @ states[-1])
    return states
