"""Graphs between items against loops over histories."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from rediffuse.errors import RediffuseWarning
from rediffuse.graphs import item_graph
from rediffuse.graphs.item_graph import cooccurrence, singular_vectors, transitions

ITEMS = 12


def histories(rng, users=30):
    rows = [rng.integers(0, ITEMS, rng.integers(0, 9)) for _ in range(users)]
    return rows, np.concatenate(([0], np.cumsum([len(row) for row in rows]))), np.concatenate(rows).astype(np.int32)


def transitions_by_loops(rows, window, decay, back):
    matrix = np.zeros((ITEMS, ITEMS))
    for row in rows:
        for p in range(len(row)):
            for q in range(p + 1, min(p + window, len(row) - 1) + 1):
                if row[p] != row[q]:
                    matrix[row[p], row[q]] += decay ** (q - p - 1)
                    matrix[row[q], row[p]] += back * decay ** (q - p - 1)
    return matrix


@pytest.mark.parametrize(("window", "decay", "back"), [(1, 0.5, 0.0), (3, 0.5, 0.0), (30, 0.8, 0.3)])
@pytest.mark.parametrize("block", [1 << 25, 20])
def test_transitions_are_those_of_loops(window, decay, back, block, monkeypatch):
    monkeypatch.setattr(item_graph, "BLOCK_ENTRIES", block)
    rows, offsets, items = histories(np.random.default_rng(window))
    found = transitions(items, offsets, ITEMS, window=window, decay=decay, back=back)
    np.testing.assert_allclose(found.matrix.toarray(), transitions_by_loops(rows, window, decay, back), rtol=1e-5)
    assert found.dropped == 0


def test_cooccurrence_is_the_dense_product(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = (rng.random((20, ITEMS)) < 0.3).astype(np.float32)
    weights = rng.random(20)
    expected = matrix.T @ np.diag(weights) @ matrix
    for block in (1 << 25, 7):
        monkeypatch.setattr(item_graph, "BLOCK_ENTRIES", block)
        found = cooccurrence(sparse.csr_array(matrix), weights)
        np.testing.assert_allclose(found.matrix.toarray(), expected, rtol=1e-5)


def test_truncation_keeps_the_strongest_and_reports_what_it_drops():
    rng = np.random.default_rng(1)
    matrix = (rng.random((50, ITEMS)) < 0.4).astype(np.float32)
    scale = rng.random(ITEMS)
    full = cooccurrence(sparse.csr_array(matrix), np.ones(50)).matrix.toarray()
    found = cooccurrence(sparse.csr_array(matrix), np.ones(50), neighbours=3, column_weights=scale)
    strength = full * scale
    for row, kept in enumerate(found.matrix.toarray()):
        chosen = set(np.argsort(-strength[row], kind="stable")[:3]) & set(np.flatnonzero(full[row]))
        assert set(np.flatnonzero(kept)) == chosen
        np.testing.assert_allclose(kept[list(chosen)], full[row][list(chosen)])
    kept_mass = (found.matrix.toarray() * scale).sum()
    assert found.dropped == pytest.approx(1 - kept_mass / strength.sum(), rel=1e-4)


def test_a_graph_too_large_for_memory_is_truncated_with_a_warning(monkeypatch):
    monkeypatch.setattr(item_graph, "MAX_ENTRIES", 10)
    monkeypatch.setattr(item_graph, "NEIGHBOURS", 2)
    matrix = sparse.csr_array(np.ones((5, ITEMS), dtype=np.float32))
    with pytest.warns(RediffuseWarning, match="keeps its 2 strongest neighbours. Set neighbours"):
        found = cooccurrence(matrix, np.ones(5))
    assert (np.diff(found.matrix.indptr) == 2).all()
    assert found.dropped == pytest.approx(10 / 12)


def test_singular_vectors_span_the_space_of_the_dense_ones():
    matrix = np.random.default_rng(2).random((15, ITEMS)).astype(np.float32)
    values, vectors = singular_vectors(sparse.csr_array(matrix), 4)
    _, dense_values, dense_vectors = np.linalg.svd(matrix)
    np.testing.assert_allclose(values, dense_values[:4], rtol=1e-5)
    expected = dense_vectors[:4].T @ dense_vectors[:4]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-5)
