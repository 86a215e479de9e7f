"""Propagation and normalisation against dense algebra."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from rediffuse.graphs import (
    Graph,
    bipartite_adjacency,
    propagate,
    row_normalised,
    social_adjacency,
    symmetric_normalised,
)

LINKS = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=np.float32)  # row 2 and column 1 have no edge


def dense() -> torch.Tensor:
    whole = np.zeros((7, 7))
    whole[:3, 3:] = LINKS
    whole += whole.T
    degree = whole.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-12)), 0)
    return torch.from_numpy(scale[:, None] * whole * scale)


def test_adjacency_is_normalised_on_both_sides():
    found = symmetric_normalised(bipartite_adjacency(sparse.csr_array(LINKS))).toarray()
    np.testing.assert_allclose(found, dense(), rtol=1e-6, atol=1e-7)
    assert not found[2].any()
    assert not found[4].any()


def test_rows_are_means():
    found = row_normalised(sparse.csr_array(LINKS)).toarray()
    assert found.tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 0]]


def test_links_join_both_ends_once():
    plain = social_adjacency(np.array([0, 2], np.int32), np.array([1, 3], np.int32), 5).toarray()
    assert plain.tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    # Repeated, reversed and self links change nothing.
    source, target = np.array([0, 0, 1, 3, 2, 4], np.int32), np.array([1, 1, 0, 2, 3, 4], np.int32)
    assert (social_adjacency(source, target, 5).toarray() == plain).all()
    one_way = social_adjacency(source, target, 5, directed=True).toarray()
    assert sorted(zip(*np.nonzero(one_way), strict=True)) == [(0, 1), (1, 0), (2, 3), (3, 2)]
    assert social_adjacency(source[:2], target[:2], 5, directed=True).toarray()[:2].tolist() == [
        [0, 1, 0, 0, 0],
        [0] * 5,
    ]


def test_layers_are_powers():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    graph = Graph(symmetric_normalised(bipartite_adjacency(sparse.csr_array(LINKS))))
    for power, layer in enumerate(propagate(graph, x, 3)):
        expected = torch.linalg.matrix_power(dense(), power).float() @ x
        torch.testing.assert_close(layer, expected, rtol=1e-5, atol=1e-6)
