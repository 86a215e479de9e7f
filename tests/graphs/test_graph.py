"""Graphs against dense algebra, their gradients against finite differences, attention against torch_geometric."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from rediffuse.graphs import Graph, segment_softmax


def matrix(rows: int = 7, columns: int = 5, seed: int = 0) -> sparse.csr_array:
    """With an empty row and an empty column."""
    rng = np.random.default_rng(seed)
    whole = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.5)
    whole[2], whole[:, 3] = 0, 0
    return sparse.csr_array(whole.astype(np.float32))


def normal(*shape: int, seed: int = 0, grad: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=grad)


ROWS = [None, torch.tensor([6, 0, 2]), torch.tensor([2]), torch.tensor([], dtype=torch.int64)]


def rows_of(dense: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return dense if rows is None else dense[rows]


@pytest.mark.parametrize("rows", ROWS)
def test_products_are_dense_ones(rows):
    whole = matrix()
    graph, x = Graph(whole), normal(5, 3, grad=False)
    block = graph.block(rows)
    dense = torch.from_numpy(whole.toarray()).double()
    torch.testing.assert_close(block @ x, rows_of(dense, rows) @ x)
    torch.testing.assert_close(graph @ x, dense @ x)
    assert len(block) == len(rows_of(dense, rows))


@pytest.mark.parametrize("rows", ROWS)
def test_weights_of_edges(rows):
    whole = matrix()
    graph, x, weights = Graph(whole), normal(5, 3, grad=False), normal(whole.nnz, seed=1, grad=False)
    dense = torch.zeros(7, 5, dtype=torch.float64)
    dense[graph.owners, graph.columns] = weights
    block = graph.block(rows)
    torch.testing.assert_close(block.gather(x, block.of_graph(weights)), rows_of(dense, rows) @ x)


@pytest.mark.parametrize("rows", ROWS)
def test_softmax_is_over_each_rows_edges(rows):
    graph = Graph(matrix())
    logits = 100 * normal(len(graph), grad=False)  # large: no overflow
    dense = torch.full((7, 5), -torch.inf, dtype=torch.float64)
    dense[graph.owners, graph.columns] = logits
    block = graph.block(rows)
    found = block.softmax(block.of_graph(logits))
    expected = rows_of(dense.softmax(1), rows)[block.owners, block.columns]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rows", ROWS[:3])
def test_gradients_by_finite_differences(rows):
    graph = Graph(matrix())
    block = graph.block(rows)
    n = len(block)

    def attend(x, weights, of_rows, of_columns):
        hidden = block.both_ends(of_rows, of_columns).tanh().sum(1) + block.of_graph(weights)
        return block.gather(x, block.softmax(hidden)) + (block @ x)

    assert torch.autograd.gradcheck(
        attend, (normal(5, 3), normal(len(graph), seed=1), normal(n, 2, seed=2), normal(5, 2, seed=3)), atol=1e-6
    )


def test_a_graph_without_edges_sends_nothing():
    graph = Graph(sparse.csr_array((3, 4), dtype=np.float32))
    x = normal(4, 2)
    found = graph.block().gather(x, graph.block().softmax(torch.zeros(0, dtype=torch.float64)))
    assert not found.any()
    found.sum().backward()
    assert not x.grad.any()


def test_gradients_are_the_same_every_time():
    rng, edges = np.random.default_rng(0), 60_000
    ends = rng.integers(3000, size=edges), rng.integers(2000, size=edges)
    graph = Graph(sparse.csr_array((rng.random(edges), ends), shape=(3000, 2000)))
    x, weights = torch.randn(2000, 16, requires_grad=True), torch.randn(len(graph), requires_grad=True)

    def gradients():
        block = graph.block(torch.arange(0, 3000, 2))
        return torch.autograd.grad(block.gather(x, block.of_graph(weights)).square().sum(), (x, weights))

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(*pair) for pair in zip(first, gradients(), strict=True))


def test_torch_geometric_agrees():
    geometric = pytest.importorskip("torch_geometric", reason="torch_geometric is not installed")
    from torch_geometric.utils import softmax

    graph = Graph(matrix())
    logits, x = normal(len(graph)), normal(5, 3, seed=1)
    alpha = softmax(logits, graph.owners, num_nodes=7)
    torch.testing.assert_close(segment_softmax(logits, graph.offsets, graph.owners), alpha)
    layer = geometric.nn.SimpleConv(aggr="sum")
    edges = torch.stack((graph.columns, graph.owners))
    theirs = layer((x, torch.zeros(7, 3, dtype=torch.float64)), edges, edge_weight=alpha, size=(5, 7))
    ours = graph.block().gather(x, graph.block().softmax(logits))
    torch.testing.assert_close(ours, theirs)
    wanted = normal(7, 3, seed=2, grad=False)
    for mine, other in zip(
        torch.autograd.grad((ours * wanted).sum(), (x, logits), retain_graph=True),
        torch.autograd.grad((theirs * wanted).sum(), (x, logits)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
