"""Histories as sets: a sparse users x items matrix, and bags of items."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from rediffuse.data.histories import Histories


def binary_matrix(histories: Histories, num_items: int) -> sparse.csr_array:
    """(rows, num_items) float32: 1 where the row's history holds the item, however often."""
    ones = np.ones(len(histories.items), dtype=np.float32)
    shape = (len(histories), num_items)
    matrix = sparse.csr_array((ones, histories.items.astype(np.int32), histories.offsets.copy()), shape=shape)
    matrix.sum_duplicates()  # also sorts each row's items
    matrix.data.fill(1.0)
    return matrix


def weighted_matrix(histories: Histories, num_items: int, weights: NDArray[np.float32]) -> sparse.csr_array:
    """(rows, num_items) float32: the weight of the row's last interaction with the item.

    Args:
        histories: the rows.
        num_items: number of columns.
        weights: (interactions,) the weight of each.
    """
    kept, counts = [np.empty(0, dtype=np.int64)], [np.zeros(1, dtype=np.int64)]
    for first, rows in histories.blocks():
        order = np.lexsort((rows.items, rows.owners))
        owners, items = rows.owners[order], rows.items[order]
        last = np.append((owners[1:] != owners[:-1]) | (items[1:] != items[:-1]), True)[: len(order)]
        kept.append(histories.offsets[first] + order[last])
        counts.append(np.bincount(owners[last], minlength=len(rows)))
    chosen, offsets = np.concatenate(kept), np.cumsum(np.concatenate(counts))
    shape = (len(histories), num_items)
    return sparse.csr_array((weights[chosen], histories.items[chosen].astype(np.int32), offsets), shape=shape)


def bags(histories: Histories, num_items: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct items of each row, as `torch.nn.functional.embedding_bag` takes them.

    Returns:
        Three int64 tensors: the items (n,), where each row begins (rows,), and how many items each row has (rows,).
    """
    matrix = binary_matrix(histories, num_items)
    arrays = (matrix.indices, matrix.indptr[:-1], np.diff(matrix.indptr))
    items, offsets, counts = (torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays)
    return items, offsets, counts
