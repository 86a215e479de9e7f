"""Neighbours by content and the graph that is made of them, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from rediffuse.features import Content, neighbours
from rediffuse.features.neighbours import column_weights, nearest
from rediffuse.models import content_graph
from rediffuse.models.content_graph import ContentGraph

ITEMS, COLUMNS = 30, 12


@pytest.fixture
def content():
    rng = np.random.default_rng(3)
    matrix = sparse.csr_array((rng.random((ITEMS, COLUMNS)) < 0.3) * rng.random((ITEMS, COLUMNS)), dtype=np.float32)
    dense = rng.normal(size=(ITEMS, 4)).astype(np.float32)
    dense[5] = 0
    return Content(matrix, dense)


@pytest.fixture
def learned():
    return np.arange(ITEMS) % 5 != 0


def cosines(content, learned):
    """(items, items) by dense arithmetic."""
    counts = (content.sparse.toarray()[learned] != 0).sum(0)
    weighed = content.sparse.toarray() * np.log(learned.sum() / np.maximum(counts, 1))
    rows = np.concatenate((weighed, content.dense), axis=1)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return rows @ rows.T


def expected(content, learned, count, factor=1.0):
    found = cosines(content, learned)
    edges = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = [other for other in np.argsort(-found[item]) if learned[other] and other != item]
        for other in others[:count]:
            edges[item, other] = factor * max(found[item, other], 0)
    return edges


@pytest.mark.parametrize("block", [1, 100, 10**9])
def test_the_nearest_are_those_of_brute_force(content, learned, block, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    numbers = np.flatnonzero(learned)
    weights = column_weights(content, learned)
    found = nearest(content, np.arange(ITEMS), content.take(numbers), numbers, weights, 4).toarray()
    for item, row in enumerate(cosines(content, learned)):
        best = [other for other in sorted(numbers, key=lambda other, row=row: -row[other]) if other != item][:4]
        wanted = np.zeros(found.shape[1])
        wanted[best] = np.maximum(row[best], 0)
        np.testing.assert_allclose(found[item], wanted, atol=1e-6)


def test_edges_lead_from_the_nearest_learned_items(content, learned, monkeypatch):
    monkeypatch.setattr(content_graph, "NEIGHBOURS", 3)
    graph = ContentGraph.of(content, learned, 7.0)
    edges = expected(content, learned, 3)
    np.testing.assert_allclose(graph.edges.csr.toarray(), edges * 7.0 / edges.sum(), atol=1e-6)
    assert graph.edges.csr.sum() == pytest.approx(7.0)
    mass = sparse.csr_array(np.eye(ITEMS, dtype=np.float32)[[2, 9]])
    np.testing.assert_allclose(graph.spread(mass).toarray(), graph.edges.csr.toarray()[:, [2, 9]].T, atol=1e-7)


def test_items_without_an_interaction_get_the_mean_of_their_neighbours(content, learned, monkeypatch):
    monkeypatch.setattr(content_graph, "NEIGHBOURS", 3)
    graph = ContentGraph.of(content, learned, 1.0)
    values = np.random.default_rng(0).random(ITEMS)
    edges = expected(content, learned, 3)
    filled = graph.filled(values)
    np.testing.assert_array_equal(filled[learned], values[learned])
    for item in np.flatnonzero(~learned):
        assert filled[item] == pytest.approx(np.average(values, weights=edges[item]), rel=1e-5)


def test_added_items_are_placed_like_the_others(content, learned):
    whole = ContentGraph.of(content, learned, 1.0)
    first = content.take(np.arange(25))
    part = ContentGraph.of(first, learned[:25], 1.0)
    state = dict(part.state_dict())
    part.add_rows(state, "", 5)
    grown = ContentGraph(ITEMS, (COLUMNS, 4))
    grown.load_state_dict(state)
    grown.describe_added(content.take(np.arange(25, ITEMS)), 25)
    before, after = part.edges.csr.toarray(), grown.edges.csr.toarray()
    np.testing.assert_array_equal(after[:25, :25], before)
    assert not after[:, 25:].any()  # nothing leads from an item without an interaction
    numbers = np.flatnonzero(learned[:25])
    weights, new = column_weights(first, learned[:25]), np.arange(25, ITEMS)
    wanted = nearest(content.take(new), new, first.take(numbers), numbers, weights, 50).toarray()
    np.testing.assert_allclose(after[25:, : wanted.shape[1]], wanted * part.scale.item(), atol=1e-6)
    assert torch.equal(grown.dense, torch.from_numpy(content.dense))
    assert len(whole.edges.csr.data) > 0
