"""A sparse graph that messages flow along, with gradients for what is sent and for how much each edge weighs.

Node i of the rows gathers from the columns of row i. The transpose is stored beside the matrix, once, because the
gradient flows along it; torch would transpose at every step. Sums over rows are bags of embeddings, which on a CPU
take half the time of torch's sparse product, and are added up in one order, so that a run can be repeated.
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
    """Edges (row, column, value) in order of rows, on one device.

    Attributes:
        shape: (rows, columns).
        offsets: (rows + 1,) int64, where each row's edges begin.
        columns: (edges,) int64.
        owners: (edges,) int64, the row of each edge.
        values: (edges,) float32, constant.
        reverse, reverse_owners: (edges,) int64, the numbers of edges in order of columns, and their rows.
        reverse_offsets: (columns + 1,) int64, where each column's edges begin among these.
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
        """(rows,) int64."""
        return self.offsets.diff()

    def part(self, rows: Tensor | None) -> Part:
        """The rows (n,) int64, distinct; None for all."""
        if rows is None:
            return Part(self, None, self.offsets, torch.arange(len(self), device=self.columns.device))
        starts, counts = self.offsets[rows], self.degrees[rows]
        offsets = F.pad(counts.cumsum(0), (1, 0))
        edges = torch.arange(int(offsets[-1]), device=rows.device)
        edges = edges + torch.repeat_interleave(starts - offsets[:-1], counts)
        return Part(self, rows, offsets, edges)

    def __matmul__(self, x: Tensor) -> Tensor:
        """(rows, d): for each row the sum of ``x`` (columns, d) over its edges, times their values."""
        return self.part(None) @ x


class Part:
    """Some rows of a graph, in the order asked for. `Graph.part` makes it.

    Attributes:
        graph: the whole of it.
        rows: (n,) their numbers, or None for all.
        offsets: (n + 1,) where each row's edges begin.
        edges: (e,) numbers of the edges in the graph.
        columns, owners: (e,) the column of each edge, and its row, counted within the part.
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
        """(e, ...) of this part's edges, from (edges, ...) of the graph's; differentiable."""
        if self.rows is None:
            return edge_values
        flat = edge_values.reshape(len(edge_values), math.prod(edge_values.shape[1:]))
        return F.embedding(self.edges, flat).view(len(self.edges), *edge_values.shape[1:])

    @property
    def values(self) -> Tensor:
        """(e,) those of the graph."""
        return self.graph.values if self.rows is None else self.graph.values[self.edges]

    def __matmul__(self, x: Tensor) -> Tensor:
        """(n, d): the rows' sums of ``x`` (columns, d), times the graph's values."""
        return self.gather(x, self.values)

    def gather(self, x: Tensor, weights: Tensor) -> Tensor:
        """(n, d): the rows' sums of ``x`` (columns, d), times ``weights`` (e,) of edges. Differentiable in both."""
        return _Gather.apply(self, x, weights)  # pyright: ignore[reportReturnType]

    def softmax(self, logits: Tensor) -> Tensor:
        """(e,) softmax over each row's edges; differentiable."""
        return segment_softmax(logits, self.offsets, self.owners)

    def both_ends(self, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """(e, d): on each edge, its row's of ``of_rows`` (n, d) plus its column's of ``of_columns`` (columns, d)."""
        return _BothEnds.apply(self, of_rows, of_columns)  # pyright: ignore[reportReturnType]

    def inner(self, of_rows: Tensor, of_columns: Tensor) -> Tensor:
        """(e,) on each edge, the inner product of its row's of ``of_rows`` (n, d) and its column's of ``of_columns``
        (columns, d). Not differentiable."""
        return _at_edges(self, of_rows, of_columns)

    def over_all_edges(self, edge_values: Tensor) -> Tensor:
        """(edges, ...) of the whole graph, zero outside this part, from (e, ...)."""
        if self.rows is None:
            return edge_values
        whole = edge_values.new_zeros(len(self.graph), *edge_values.shape[1:])
        whole[self.edges] = edge_values
        return whole


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, x: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        ctx.part = part
        ctx.save_for_backward(x, weights)
        return _bag(part.columns, x, part.offsets, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None]:  # type: ignore[override]
        part: Part = ctx.part
        x, weights = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = grad_weights = None
        if ctx.needs_input_grad[1]:
            graph, flow = part.graph, grad
            if part.rows is not None:
                flow = grad.new_zeros(graph.shape[0], grad.shape[1])
                flow[part.rows] = grad
            back = part.over_all_edges(weights)[graph.reverse]
            grad_x = _bag(graph.reverse_owners, flow, graph.reverse_offsets, back)
        if ctx.needs_input_grad[2]:
            grad_weights = _at_edges(part, grad, x)
        return None, grad_x, grad_weights


def _bag(numbers: Tensor, table: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """(n, d) sums of rows of ``table``, weighted."""
    weights = None if weights is None else weights.to(table.dtype)
    return F.embedding_bag(numbers, table, offsets[:-1], mode="sum", per_sample_weights=weights)


def _at_edges(part: Part, left: Tensor, right: Tensor) -> Tensor:
    """(e,) the inner product of ``left`` (n, d) at the edge's row and ``right`` (columns, d) at its column."""
    with warnings.catch_warnings():  # torch says at every use that CSR support is in beta
        warnings.simplefilter("ignore", UserWarning)
        pattern = torch.sparse_csr_tensor(
            part.offsets, part.columns, left.new_zeros(len(part.columns)), (len(part), part.graph.shape[1])
        )
        return torch.sparse.sampled_addmm(pattern, left, right.T.contiguous()).values()


class _BothEnds(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Part, of_rows: Tensor, of_columns: Tensor) -> Tensor:  # type: ignore[override]
        ctx.part = part
        return of_rows.index_select(0, part.owners) + of_columns.index_select(0, part.columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[override]
        part: Part = ctx.part
        grad = grad.contiguous()
        in_order = torch.arange(len(grad), device=grad.device)
        to_rows = _bag(in_order, grad, part.offsets)
        to_columns = _bag(part.graph.reverse, part.over_all_edges(grad), part.graph.reverse_offsets)
        return None, to_rows, to_columns


class _SegmentSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, offsets: Tensor, owners: Tensor) -> Tensor:  # type: ignore[override]
        largest = torch.segment_reduce(logits, "max", offsets=offsets, axis=0)
        powers = torch.exp(logits - largest[owners])
        chances = powers / torch.segment_reduce(powers, "sum", offsets=offsets, axis=0, initial=0)[owners]
        ctx.save_for_backward(chances, offsets, owners)
        return chances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        chances, offsets, owners = ctx.saved_tensors
        flow = chances * grad
        return (
            flow - chances * torch.segment_reduce(flow, "sum", offsets=offsets, axis=0, initial=0)[owners],
            None,
            None,
        )


def segment_softmax(logits: Tensor, offsets: Tensor, owners: Tensor) -> Tensor:
    """Softmax within segments, for any number of elements in each, also none.

    Args:
        logits: (e,) segment after segment.
        offsets: (n + 1,) int64 where each begins.
        owners: (e,) int64 the segment of each element.
    """
    return _SegmentSoftmax.apply(logits, offsets, owners)  # pyright: ignore[reportReturnType]
