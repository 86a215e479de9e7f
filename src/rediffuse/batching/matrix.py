"""Histories as sets: a sparse users x items matrix, and bags of items."""

from __future__ import annotations

from typing import cast

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


def users_of_items(histories: Histories, num_items: int) -> NDArray[np.int64]:
    """(num_items,) how many rows hold each item: the column sums of `binary_matrix`, in little memory."""
    counts = np.zeros(num_items, dtype=np.int64)
    for _, rows in histories.blocks():
        counts += np.bincount(np.unique(rows.owners * num_items + rows.items) % num_items, minlength=num_items)
    return counts


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


def shape_of(matrix: sparse.csr_array) -> tuple[int, int]:
    """Rows and columns; scipy's types allow arrays without a shape."""
    rows, columns = cast(tuple[int, int], matrix.shape)
    return rows, columns


def rows_at_once(num_columns: int, most: int) -> int:
    """Rows of a matrix of ``num_columns`` that `largest` takes in one call, at most ``most``."""
    return max(1, min(most, 1 << (32 - _bits(num_columns))))


def _bits(count: int) -> int:
    return max(int(count - 1).bit_length(), 1)


def largest(
    matrix: sparse.csr_array, kept: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The ``kept`` largest positive elements of each row, largest first; ties by column.

    Args:
        matrix: (rows, columns) float32 without duplicates, with at most `rows_at_once` rows.
        kept: at least 1.

    Returns:
        Row, place in the row (from 0), column and value of each.
    """
    assert matrix.data.dtype == np.float32
    num_rows, num_columns = shape_of(matrix)
    assert num_rows <= rows_at_once(num_columns, num_rows)
    values, offsets = matrix.data, matrix.indptr
    candidate = values > 0
    # Selecting is much cheaper than sorting: only what reaches the last kept value of a long row is sorted.
    for row in np.flatnonzero(np.diff(offsets) > 2 * kept):
        of_row = values[offsets[row] : offsets[row + 1]]
        last = np.partition(of_row, len(of_row) - kept)[len(of_row) - kept]
        candidate[offsets[row] : offsets[row + 1]] &= of_row >= last
    at = np.flatnonzero(candidate)
    rows = np.searchsorted(offsets, at, side="right") - 1
    # One integer holds row, value and column, and integers sort fast. The bits of positive floats are in their order.
    inverted = np.int64(0x7FFFFFFF) - values[at].view(np.int32)
    width = _bits(num_columns)
    keys = ((rows.astype(np.int64) << 31 | inverted) << width) | matrix.indices[at]
    keys.sort()
    rows = keys >> (31 + width)
    counts = np.bincount(rows, minlength=num_rows)
    places = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys, rows, places = (array[places < kept] for array in (keys, rows, places))
    found = (np.int64(0x7FFFFFFF) - (keys >> width & 0x7FFFFFFF)).astype(np.int32).view(np.float32)
    return rows, places, keys & ((1 << width) - 1), found


def bags(histories: Histories, num_items: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct items of each row, as `torch.nn.functional.embedding_bag` takes them.

    Returns:
        Three int64 tensors: the items (n,), where each row begins (rows,), and how many items each row has (rows,).
    """
    return _bags(binary_matrix(histories, num_items), device)


def weighted_bags(
    histories: Histories, num_items: int, weights: NDArray[np.float32], device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct items of each row with the weight of the row's last interaction with each.

    Args:
        weights: (interactions,) the weight of each.

    Returns:
        As `bags`, and the weights (n,) float32.
    """
    matrix = weighted_matrix(histories, num_items, weights)
    return *_bags(matrix, device), torch.from_numpy(matrix.data).to(device)


def _bags(matrix: sparse.csr_array, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    arrays = (matrix.indices, matrix.indptr[:-1], np.diff(matrix.indptr))
    items, offsets, counts = (torch.from_numpy(array.astype(np.int64)).to(device) for array in arrays)
    return items, offsets, counts
