"""A sparse graph for message passing, differentiable in the messages and in the weights of the edges.

Node i gathers from the columns of row i. The transpose is stored too, because gradients flow along it; torch would
transpose at every step. Sums over rows are bags of embeddings: on a CPU these take half the time of torch's sparse
product, and they add in a fixed order, so a run can be repeated exactly.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Graph:
    """The edges (row, column, value) of a sparse matrix, in order of rows, on one device.

    Attributes:
        shape: (rows, columns).
        offsets: (rows + 1,) int64, where the edges of each row begin.
        columns: (edges,) int64, the column of each edge.
        owners: (edges,) int64, the row of each edge.
        values: (edges,) float32, constant.
        reverse: (edges,) int64, edge numbers in order of columns.
        reverse_owners: (edges,) int64, the rows of these edges.
        reverse_offsets: (columns + 1,) int64, where the edges of each column begin in ``reverse``.
    """

    def __init__(self, matrix: sparse.csr_array, device: torch.device | str = "cpu") -> None:
        matrix = matrix.sorted_indices()
        self.shape: tuple[int, int] = matrix.shape  # pyright: ignore[reportAttributeAccessIssue]
        rows = np.repeat(np.arange(self.shape[0]), np.diff(matrix.indptr))
        reverse = np.argsort(matrix.indices, kind="stable")
        counts = np.bincount(matrix.indices, minlength=self.shape[1])

        def put(array: Any) -> Tensor:
            return torch.from_numpy(np.asarray(array, dtype=np.int64)).to(device)

        self.offsets, self.columns, self.owners = put(matrix.indptr), put(matrix.indices), put(rows)
        self.reverse, self.reverse_offsets = put(reverse), put(np.concatenate(([0], np.cumsum(counts))))
        self.reverse_owners = self.owners[self.reverse]
        self.values = torch.from_numpy(matrix.data.astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def degrees(self) -> Tensor:
        """(rows,) int64, the number of edges of each row."""
        return self.offsets.diff()

    def block(self, rows: Tensor | None = None) -> RowBlock:
        """The block of ``rows`` (n,) int64, which are distinct; None: of all rows."""
        if rows is None:
            return RowBlock(self, None, self.offsets, torch.arange(len(self), device=self.columns.device))
        starts, counts = self.offsets[rows], self.degrees[rows]
        offsets = F.pad(counts.cumsum(0), (1, 0))
        edges = torch.arange(int(offsets[-1]), device=rows.device)
        edges = edges + torch.repeat_interleave(starts - offsets[:-1], counts)
        return RowBlock(self, rows, offsets, edges)

    def __matmul__(self, x: Tensor) -> Tensor:
        """(rows, d): the sum over each row's edges of ``x`` (columns, d) times the value."""
        return self.block() @ x


class RowBlock:
    """n rows of a graph with their e edges. `Graph.block` makes it.

    Attributes:
        graph: the graph.
        rows: (n,) row numbers, in the order of the block; None: all rows.
        offsets: (n + 1,) where the edges of each row begin.
        edges: (e,) edge numbers in the graph.
        columns: (e,) the column of each edge.
        owners: (e,) the row of each edge, as its position in the block.
    """

    def __init__(self, graph: Graph, rows: Tensor | None, offsets: Tensor, edges: Tensor) -> None:
        self.graph, self.rows, self.offsets, self.edges = graph, rows, offsets, edges
        self.columns = graph.columns if rows is None else graph.columns[edges]
        counts = offsets.diff()
        self.owners = (
            graph.owners
            if rows is None
            else torch.repeat_interleave(torch.arange(len(counts), device=edges.device), counts)
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of_graph(self, edge_values: Tensor) -> Tensor:
        """(e, ...) values of the block's edges, from values (edges, ...) of the graph's edges; differentiable."""
        if self.rows is None:
            return edge_values
        flat = edge_values.reshape(len(edge_values), math.prod(edge_values.shape[1:]))
        return F.embedding(self.edges, flat).view(len(self.edges), *edge_values.shape[1:])

    @property
    def values(self) -> Tensor:
        """(e,) the graph's values of the edges."""
        return self.graph.values if self.rows is None else self.graph.values[self.edges]

    def __matmul__(self, x: Tensor) -> Tensor:
        """(n, d): the sum over each row's edges of ``x`` (columns, d) times the graph's value."""
        return self.gather(x, self.values)

    def gather(self, x: Tensor, weights: Tensor) -> Tensor:
        """(n, d): the sum over each row's edges of ``x`` (columns, d) times ``weights`` (e,); differentiable."""
        return _Gather.apply(self, x, weights)  # pyright: ignore[reportReturnType]

    def softmax(self, logits: Tensor) -> Tensor:
        """(e,) the softmax of ``logits`` (e,) over each row's edges; differentiable."""
        return segment_softmax(logits, self.offsets, self.owners)

    def both_ends(self, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """(e, d): for each edge, ``of_rows`` (n, d) at its row plus ``of_columns`` (columns, d) at its column."""
        return _BothEnds.apply(self, of_rows, of_columns)  # pyright: ignore[reportReturnType]

    def inner(self, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """(e,): for each edge, the inner product of ``of_rows`` (n, d) at its row and ``of_columns`` (columns, d) at
        its column; not differentiable."""
        return _at_edges(self, of_rows, of_columns)

    def over_all_edges(self, edge_values: Tensor) -> Tensor:
        """(edges, ...) values of the graph's edges, zero outside the block, from values (e, ...) of the block's."""
        if self.rows is None:
            return edge_values
        whole = edge_values.new_zeros(len(self.graph), *edge_values.shape[1:])
        whole[self.edges] = edge_values
        return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: RowBlock, x: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.block = block
        ctx.save_for_backward(x, weights)
        return _bag(block.columns, x, block.offsets, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:  # type: ignore[override]
        block: RowBlock = ctx.block
        x, weights = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weights = None
        if ctx.needs_input_grad[1]:
            graph, flow = block.graph, grad
            if block.rows is not None:
                flow = grad.new_zeros(graph.shape[0], grad.shape[1])
                flow[block.rows] = grad
            back = block.over_all_edges(weights)[graph.reverse]
            grad_x = _bag(graph.reverse_owners, flow, graph.reverse_offsets, back)
        if ctx.needs_input_grad[2]:
            grad_weights = _at_edges(block, grad, x)
        return None, grad_x, grad_weights


def _bag(numbers: Tensor, table: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """(n, d) weighted sums of rows of ``table``."""
    weights = None if weights is None else weights.to(table.dtype)
    return F.embedding_bag(numbers, table, offsets[:-1], mode="sum", per_sample_weights=weights)


def _at_edges(block: RowBlock, left: Tensor, right: Tensor) -> Tensor:
    """(e,) the inner product of ``left`` (n, d) at the edge's row and ``right`` (columns, d) at its column."""
    with warnings.catch_warnings():  # torch warns that its CSR support is in beta
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            block.offsets, block.columns, left.new_zeros(len(block.columns)), (len(block), block.graph.shape[1])
        )
        return torch.sparse.sampled_addmm(pattern, left, right.T.contiguous()).values()


class _BothEnds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: RowBlock, of_rows: Tensor, of_columns: Tensor) -> Tensor:  # type: ignore[override]
        ctx.block = block
        return of_rows.index_select(0, block.owners) + of_columns.index_select(0, block.columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]
        block: RowBlock = ctx.block
        grad = grad.contiguous()
        in_order = torch.arange(len(grad), device=grad.device)
        to_rows = _bag(in_order, grad, block.offsets)
        to_columns = _bag(block.graph.reverse, block.over_all_edges(grad), block.graph.reverse_offsets)
        return None, to_rows, to_columns


class _SegmentSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, offsets: Tensor, owners: Tensor) -> Tensor:  # type: ignore[override]
        largest = torch.segment_reduce(logits, "max", offsets=offsets, axis=0)
        powers = torch.exp(logits - largest[owners])
        probabilities = powers / torch.segment_reduce(powers, "sum", offsets=offsets, axis=0, initial=0)[owners]
        ctx.save_for_backward(probabilities, offsets, owners)
        return probabilities

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        probabilities, offsets, owners = ctx.saved_tensors
        flow = probabilities * grad
        return (
            flow - probabilities * torch.segment_reduce(flow, "sum", offsets=offsets, axis=0, initial=0)[owners],
            None,
            None,
        )


def segment_softmax(logits: Tensor, offsets: Tensor, owners: Tensor) -> Tensor:
    """Softmax within segments, which may be empty.

    Args:
        logits: (e,) segment after segment.
        offsets: (n + 1,) int64 where each segment begins.
        owners: (e,) int64 the segment of each element.

    Returns:
        (e,) probabilities; differentiable.
    """
    return _SegmentSoftmax.apply(logits, offsets, owners)  # pyright: ignore[reportReturnType]
