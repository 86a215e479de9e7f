"""Batches of whole rows of a users x items matrix, for models that reconstruct a user's items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from rediffuse.batching.sequences import rank_slice


@dataclass(frozen=True)
class RowBatch:
    """B sparse rows.

    Attributes:
        items, values: (n,) int64 and float32, the non-zero elements, row after row.
        offsets: (B,) int64, where each row begins.
        rank_weight: see `rediffuse.batching.sequences.SequenceBatch`.
    """

    items: Tensor
    values: Tensor
    offsets: Tensor
    rank_weight: float = 1.0

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def owners(self) -> Tensor:
        """(n,) int64 the row of each element."""
        ends = torch.cat((self.offsets[1:], self.offsets.new_tensor([len(self.items)])))
        return torch.repeat_interleave(torch.arange(len(self), device=ends.device), ends - self.offsets)

    def dense(self, width: int) -> Tensor:
        """The rows as a dense matrix (B, width) float32."""
        return self.values.new_zeros(len(self), width).index_put((self.owners, self.items), self.values)

    def to(self, device: torch.device) -> RowBatch:
        return RowBatch(self.items.to(device), self.values.to(device), self.offsets.to(device), self.rank_weight)


def row_batch(matrix: sparse.csr_array) -> RowBatch:
    """All rows of a matrix as one batch."""
    items, offsets = (torch.from_numpy(array.astype(np.int64)) for array in (matrix.indices, matrix.indptr[:-1]))
    return RowBatch(items, torch.from_numpy(matrix.data), offsets)


class RowBatches:
    """One epoch over all rows that are not empty.

    Args:
        matrix: (users, items).
        batch_size: rows per batch.
        rng: the order depends on it alone.
        order: the rows of the epoch, in this order, in place of all.
    """

    def __init__(
        self,
        matrix: sparse.csr_array,
        *,
        batch_size: int,
        rng: np.random.Generator,
        order: NDArray[np.int64] | None = None,
    ) -> None:
        self.matrix, self.batch_size = matrix, batch_size
        self.order = rng.permutation(np.flatnonzero(np.diff(matrix.indptr))) if order is None else order

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def users(self, index: int) -> NDArray[np.int64]:
        """Users in batch ``index``."""
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> RowBatch:
        """Batch ``index``, or the slice of it that belongs to ``rank``."""
        users, rank_weight = rank_slice(self.users(index), rank, ranks)
        batch = row_batch(self.matrix[users])
        return RowBatch(batch.items, batch.values, batch.offsets, rank_weight)
