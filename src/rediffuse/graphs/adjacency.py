"""Adjacency matrices as CSR arrays of SciPy, and their normalisation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def bipartite_adjacency(links: sparse.csr_array, *, self_loops: bool = False) -> sparse.csr_array:
    """(n + m, n + m) symmetric adjacency of the rows of ``links`` (n, m), then its columns."""
    loops = [sparse.eye_array(size, dtype=np.dtype(np.float32)) if self_loops else None for size in links.shape]  # pyright: ignore
    return sparse.csr_array(sparse.block_array([[loops[0], links], [links.T, loops[1]]]))


def social_adjacency(
    source: NDArray[np.int32], target: NDArray[np.int32], users: int, *, directed: bool = False
) -> sparse.csr_array:
    """(users, users) binary adjacency of links between users.

    A link counts in both directions, or if ``directed`` only from its source to its target. Repeated links count once,
    and links from a user to themselves are left out.
    """
    apart = source != target
    ends = (source[apart], target[apart])
    if not directed:
        ends = (np.concatenate(ends), np.concatenate(ends[::-1]))
    matrix = sparse.csr_array(sparse.coo_array((np.ones(len(ends[0]), dtype=np.float32), ends), shape=(users, users)))
    matrix.sum_duplicates()
    matrix.data.fill(1.0)
    return matrix


def row_normalised(matrix: sparse.csr_array) -> sparse.csr_array:
    """D^-1 A, with the row sums D: a product with it averages over neighbours; empty rows stay empty."""
    sums = np.ravel(matrix.sum(axis=1))
    return _scaled(matrix, _inverse(sums), None)


def symmetric_normalised(matrix: sparse.csr_array) -> sparse.csr_array:
    """D^-1/2 A D^-1/2 (Kipf & Welling, ICLR 2017), with the row sums on the left and the column sums on the right."""
    degrees = [np.ravel(matrix.sum(axis=axis)) for axis in (1, 0)]
    return _scaled(matrix, *(_inverse(np.sqrt(d)) for d in degrees))


def _inverse(x: NDArray) -> NDArray:
    """1 / x, and 0 where x is 0."""
    return np.divide(1, x, out=np.zeros_like(x), where=x > 0)


def _scaled(matrix: sparse.csr_array, left: NDArray, right: NDArray | None) -> sparse.csr_array:
    values = matrix.data * np.repeat(left, np.diff(matrix.indptr))
    values = values if right is None else values * right[matrix.indices]
    return sparse.csr_array((values.astype(np.float32), matrix.indices, matrix.indptr), shape=matrix.shape)
