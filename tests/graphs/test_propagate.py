"""Propagation against dense algebra, and its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from rediffuse.graphs import bipartite_adjacency, propagate

LINKS = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=np.float32)  # row 2 and column 1 have no edge


def dense() -> torch.Tensor:
    whole = np.zeros((7, 7))
    whole[:3, 3:] = LINKS
    whole += whole.T
    degree = whole.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-12)), 0)
    return torch.from_numpy(scale[:, None] * whole * scale)


def test_adjacency_is_normalised_on_both_sides():
    found = bipartite_adjacency(sparse.csr_array(LINKS)).to_dense()
    torch.testing.assert_close(found.double(), dense(), rtol=1e-6, atol=1e-7)
    assert not found[2].any()
    assert not found[4].any()


def test_layers_are_powers():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layers = propagate(bipartite_adjacency(sparse.csr_array(LINKS)).double(), x, 3)
    for power, layer in enumerate(layers):
        torch.testing.assert_close(layer, torch.linalg.matrix_power(dense(), power) @ x, rtol=1e-5, atol=1e-6)


def test_gradient_by_finite_differences():
    adjacency = bipartite_adjacency(sparse.csr_array(LINKS)).double()
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: torch.stack(propagate(adjacency, x, 2)).mean(0).tanh(), (x,))
