"""Edges by which heat reaches items without an interaction: from each item to those that are like it in content."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from rediffuse.features import Content
from rediffuse.features.neighbours import column_weights, nearest
from rediffuse.nn.sized import with_rows
from rediffuse.nn.sparse import SparseMatrix, add_empty_rows

# Every item is reached from so many items that are most like it.
NEIGHBOURS = 50


class ContentGraph(nn.Module):
    """A sparse graph of items, and the content that it was made of, which places new items in it.

    Edges lead from items with an interaction in training to all items. Their weights are cosines, times a factor.

    Args:
        num_items: size of the catalogue.
        widths: columns of the sparse and of the dense part of the content.
    """

    edges: SparseMatrix
    sparse: SparseMatrix
    dense: Tensor
    learned: Tensor
    column_weights: Tensor
    scale: Tensor

    def __init__(self, num_items: int, widths: tuple[int, int]) -> None:
        super().__init__()
        self.edges = SparseMatrix(num_items, num_items)  # by the item that is reached: row i holds what leads to i
        self.sparse = SparseMatrix(num_items, widths[0])
        self.register_buffer("dense", torch.zeros(num_items, widths[1]))
        self.register_buffer("learned", torch.zeros(num_items, dtype=torch.bool))
        self.register_buffer("column_weights", torch.zeros(widths[0]))
        self.register_buffer("scale", torch.ones(()))

    @classmethod
    def of(cls, content: Content, learned: NDArray[np.bool_], mass: float) -> ContentGraph:
        """The graph of all items.

        Args:
            content: of the items.
            learned: (items,) which have an interaction in training.
            mass: sum of all weights.
        """
        graph = cls(len(content), (content.sparse.shape[1], content.dense.shape[1]))  # pyright: ignore
        graph.sparse.set(content.sparse.copy())  # the state of a model must not hold an array twice
        graph.dense.copy_(torch.from_numpy(content.dense))
        graph.learned.copy_(torch.from_numpy(learned))
        graph.column_weights.copy_(torch.from_numpy(column_weights(content, learned)))
        edges = graph._edges_to(content, np.arange(len(content)))
        graph.scale.fill_(mass / max(float(edges.sum(dtype=np.float64)), 1e-30))
        graph.edges.set(edges * graph.scale.numpy())
        return graph

    @property
    def content(self) -> Content:
        """The content of all items."""
        return Content(self.sparse.csr, self.dense.cpu().numpy())

    def spread(self, rows: sparse.csr_array) -> sparse.csr_array:
        """(B, num_items) what rows of mass (B, num_items) give to items that are like theirs."""
        return sparse.csr_array(rows @ self.edges.csr.T)

    def filled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values (num_items,) of the items, with those of items without an interaction replaced by their neighbours'
        mean."""
        new = np.flatnonzero(~self.learned.cpu().numpy())
        edges = self.edges.csr[new]
        sums = np.ravel(edges.sum(axis=1))
        filled = values.copy()
        filled[new] = np.divide(edges @ values, sums, out=np.zeros(len(new)), where=sums > 0)
        return filled

    def add_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        """Add rows for new items, which are not described yet, to a state dict of this graph."""
        at = len(self.learned)
        for name in ("dense", "learned"):
            state[prefix + name] = with_rows(state[prefix + name], at, added)
        for name in ("edges", "sparse"):
            add_empty_rows(state, f"{prefix}{name}.", at, added)

    def describe_added(self, content: Content, at: int) -> None:
        """Place new items, from number ``at`` on, by their content."""
        self.sparse.set(sparse.csr_array(sparse.vstack((self.sparse.csr[:at], content.sparse), format="csr")))
        self.dense[at:] = torch.from_numpy(content.dense).to(self.dense.device)
        edges = self._edges_to(content, np.arange(at, at + len(content))) * self.scale.cpu().numpy()
        self.edges.set(sparse.csr_array(sparse.vstack((self.edges.csr[:at], edges), format="csr")))

    def _edges_to(self, content: Content, numbers: NDArray[np.int64]) -> sparse.csr_array:
        """(n, num_items) what leads to items of these numbers (n,), without factor."""
        learned = np.flatnonzero(self.learned.cpu().numpy())
        weights = self.column_weights.cpu().numpy()
        found = nearest(content, numbers, self.content.take(learned), learned, weights, NEIGHBOURS)
        found.resize(len(numbers), len(self.learned))
        return found
