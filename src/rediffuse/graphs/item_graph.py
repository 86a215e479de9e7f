"""Sparse matrices between items: who shares users with whom, and what follows what.

Both are built one block of items at a time, so memory holds the result and one block. An item can keep its strongest
neighbours alone.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

from rediffuse.errors import RediffuseWarning

# Entries of the matrix of one block, before truncation.
BLOCK_ENTRIES = 1 << 24
# A matrix that may have more entries (2 GiB) is truncated, and a warning says so.
MAX_ENTRIES = 1 << 28
NEIGHBOURS = 200


@dataclass(frozen=True)
class ItemGraph:
    """A sparse items x items matrix.

    Attributes:
        matrix: (I, I) float32, rows in order of columns.
        dropped: share of the mass (the sum of all weighted entries) that truncation left out.
    """

    matrix: sparse.csr_array
    dropped: float


def cooccurrence(
    matrix: sparse.csr_array,
    user_weights: NDArray[np.floating],
    *,
    neighbours: int | None = None,
    column_weights: NDArray[np.floating] | None = None,
) -> ItemGraph:
    """R' W R, for the users x items matrix R and the diagonal W.

    Args:
        matrix: R (U, I) float32.
        user_weights: (U,) the diagonal of W.
        neighbours: entries kept per row, the largest by value times ``column_weights``; None: all.
        column_weights: (I,); None: ones.
    """
    transposed = sparse.csr_array(matrix.T)
    work = np.asarray(transposed @ np.diff(matrix.indptr).astype(np.float64))
    transposed.data *= user_weights.astype(np.float32)[transposed.indices]
    return _in_blocks(
        work,
        transposed.shape[0],  # pyright: ignore
        lambda first, last: sparse.csr_array(transposed[first:last] @ matrix),
        neighbours,
        column_weights,
    )


def transitions(
    items: NDArray[np.int32],
    offsets: NDArray[np.int64],
    num_items: int,
    *,
    window: int,
    decay: float,
    back: float = 0.0,
    neighbours: int | None = None,
    column_weights: NDArray[np.floating] | None = None,
) -> ItemGraph:
    """How often one item follows another.

    For positions p < q <= p + window of a history, entry (item p, item q) grows by decay^(q - p - 1), and entry (item
    q, item p) by ``back`` times that. The diagonal is zero.

    Args:
        items: (n,) item numbers of all histories, oldest first.
        offsets: (U + 1,) where each history begins.
        num_items: size of the catalogue.
        neighbours, column_weights: as for `cooccurrence`.
    """
    owners = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    positions, starts = _positions_by_item(items, num_items)
    lags = [lag for lag in range(-window if back else 1, window + 1) if lag]

    def block(first: int, last: int) -> sparse.csr_array:
        at = positions[starts[first] : starts[last]]
        begins, ends = offsets[owners[at]], offsets[owners[at] + 1]
        total = sparse.csr_array((last - first, num_items), dtype=np.float32)
        for lag in lags:
            other = at + lag
            inside = np.flatnonzero((other >= begins) & (other < ends))
            rows, columns = items[at[inside]] - first, items[other[inside]]
            apart = rows + first != columns
            weight = decay ** (abs(lag) - 1) * (1.0 if lag > 0 else back)
            values = np.full(int(apart.sum()), weight, dtype=np.float32)
            total = total + sparse.csr_array(
                sparse.coo_array((values, (rows[apart], columns[apart])), shape=total.shape)
            )
        return sparse.csr_array(total)

    work = np.diff(starts).astype(np.float64) * len(lags)
    return _in_blocks(work, num_items, block, neighbours, column_weights)


def _positions_by_item(items: NDArray[np.int32], num_items: int) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """(n,) the positions of each item in ``items``, ascending; and (num_items + 1,) where those of each item begin."""
    count = len(items)
    rows = np.arange(count + 1, dtype=np.int32 if count < 2**31 - 1 else np.int64)
    one_a_row = sparse.csr_array((np.ones(count, dtype=np.int8), items, rows), shape=(count, num_items))
    by_item = one_a_row.tocsc()  # a counting sort
    return by_item.indices, by_item.indptr.astype(np.int64)


def _in_blocks(
    work: NDArray[np.float64],
    num_items: int,
    block: Callable[[int, int], sparse.csr_array],
    neighbours: int | None,
    column_weights: NDArray[np.floating] | None,
) -> ItemGraph:
    """Build a matrix block by block, and truncate each block.

    Args:
        work: (I,) an upper bound of the entries of each row, counted before equal columns are summed.
        block: builds the rows ``first:last``.

    Warns:
        RediffuseWarning: the matrix may be too large for memory, and ``neighbours`` was not given.
    """
    entries = float(np.minimum(work, num_items).sum())
    if neighbours is None and entries > MAX_ENTRIES:
        neighbours = NEIGHBOURS
        warnings.warn(
            f"The graph of {num_items:,} items could have {entries:,.0f} entries ({entries * 8 / 2**30:.1f} GiB), so "
            f"each item keeps its {neighbours} strongest neighbours. Set neighbours to choose how many.",
            RediffuseWarning,
            stacklevel=4,
        )

    def part(bounds: tuple[int, int]) -> tuple[sparse.csr_array, float, float]:
        """The rows of a block; their mass before truncation, and after."""
        rows, mass, left = block(*bounds), 0.0, 0.0
        if neighbours is not None:
            kept, mass, left = strongest(rows, neighbours, column_weights)
            indptr = np.searchsorted(kept, rows.indptr)
            rows = sparse.csr_array((rows.data[kept], rows.indices[kept], indptr), shape=rows.shape)
        rows.sort_indices()
        return rows, mass, left

    # SciPy's products run without the lock of the interpreter.
    threads = max(1, min(torch.get_num_threads(), 8))
    # Arrays for all entries that there can be. The system gives memory to what is written alone.
    most = int(np.minimum(work, min(num_items, neighbours or num_items)).sum())
    values, columns, indptr = np.empty(most, np.float32), np.empty(most, np.int32), [np.zeros(1, np.int64)]
    end, total, kept = 0, 0.0, 0.0
    with ThreadPoolExecutor(threads) as pool:
        for rows, mass, left in pool.map(part, _blocks(work, BLOCK_ENTRIES // threads)):
            values[end : end + rows.nnz], columns[end : end + rows.nnz] = rows.data, rows.indices
            indptr.append(rows.indptr[1:].astype(np.int64) + end)
            end, total, kept = end + rows.nnz, total + mass, kept + left
    arrays = values[:end], columns[:end], np.concatenate(indptr)
    return ItemGraph(sparse.csr_array(arrays, shape=(num_items, num_items)), 1 - kept / total if total else 0.0)


def _blocks(work: NDArray[np.float64], entries: int) -> Iterator[tuple[int, int]]:
    """Runs of items ``first:last`` with about so many entries."""
    total = np.concatenate(([0], np.cumsum(work)))
    first = 0
    while first < len(work):
        last = int(np.searchsorted(total, total[first] + entries, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


def strongest(
    rows: sparse.csr_array, count: int, column_weights: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.int64], float, float]:
    """The ``count`` largest entries of each row, by value times the weight of the column; of equal ones, the smallest
    columns.

    Returns:
        Their positions among the entries, ascending; and the sum of all entries, and of those that are kept.
    """
    scale = None if column_weights is None else column_weights.astype(np.float32)
    kept, total, left = [np.empty(0, dtype=np.int64)], 0.0, 0.0
    bounds: list[int] = np.asarray(rows.indptr).tolist()
    for first, last in itertools.pairwise(bounds):
        columns, values = rows.indices[first:last], rows.data[first:last]
        if scale is not None:
            values = values * scale[columns]
        total += float(values.sum(dtype=np.float64))
        if last - first > count:
            bound = np.partition(values, len(values) - count)[len(values) - count]
            above, ties = np.flatnonzero(values > bound), np.flatnonzero(values == bound)
            ties = ties[np.argsort(columns[ties], kind="stable")[: count - len(above)]]
            inside = np.sort(np.concatenate((above, ties)))
            values = values[inside]
        else:
            inside = np.arange(last - first)
        left += float(values.sum(dtype=np.float64))
        kept.append(first + inside)
    return np.concatenate(kept), total, left


def scaled(matrix: sparse.csr_array, left: NDArray, right: NDArray) -> sparse.csr_array:
    """diag(left) M diag(right), float32; indices are shared with M."""
    values = matrix.data * np.repeat(left, np.diff(matrix.indptr)) * right[matrix.indices]
    return sparse.csr_array((values.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)


def power(degrees: NDArray, exponent: float) -> NDArray[np.float64]:
    """degrees ^ exponent, and 0 where the degree is 0."""
    degrees = np.asarray(degrees, dtype=np.float64)
    return np.power(degrees, exponent, out=np.zeros_like(degrees), where=degrees > 0)


def singular_vectors(matrix: sparse.csr_array, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The largest singular values (n,), in descending order, and their right singular vectors (columns, n).

    Args:
        matrix: (rows, columns).
        count: n; fewer if the matrix is too small.
    """
    smaller = min(matrix.shape)  # pyright: ignore
    start = np.random.default_rng(0).random(smaller)
    _, values, vectors = svds(matrix.astype(np.float64), k=max(1, min(count, smaller - 1)), v0=start)  # pyright: ignore
    order = np.argsort(-values)
    return values[order].astype(np.float32), np.ascontiguousarray(vectors[order].T.astype(np.float32))  # pyright: ignore
