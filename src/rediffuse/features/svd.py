"""The leading right singular vectors of a sparse matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

# Up to this many times the wanted width, the dense product of the shorter side is faster, and gives the rank.
_DENSE = 4
# Singular values below this share of the largest are rounding.
_RANK = 1e-4


def right_singular_vectors(matrix: Any, width: int, seed: int) -> NDArray[np.float64]:
    """(columns, up to ``width``) orthonormal, by falling singular value; fewer where the rank of the matrix is lower.

    Of each vector, the element with the largest magnitude is positive, so that a matrix gives the same vectors again.

    Args:
        matrix: (rows, columns) sparse.
        width: how many are wanted.
        seed: of the first vector of the iteration (ARPACK).
    """
    rows, columns = matrix.shape
    shorter = min(rows, columns)
    if not shorter or not matrix.nnz:
        return np.zeros((columns, 0))
    matrix = matrix.astype(np.float64)
    if shorter <= _DENSE * width:
        if rows <= columns:
            values, left = np.linalg.eigh((matrix @ matrix.T).toarray())
            sizes = np.sqrt(np.maximum(values, 0))
            kept = sizes > _RANK * sizes.max()
            sizes = sizes[kept]
            vectors = (matrix.T @ left[:, kept]) / sizes
        else:
            values, vectors = np.linalg.eigh((matrix.T @ matrix).toarray())
            sizes = np.sqrt(np.maximum(values, 0))
            kept = sizes > _RANK * sizes.max()
            sizes, vectors = sizes[kept], vectors[:, kept]
    else:
        start = np.random.default_rng(seed).standard_normal(shorter)
        found: Any = svds(matrix, k=width, v0=start, return_singular_vectors="vh")  # pyright: ignore
        _, sizes, transposed = found
        kept = sizes > _RANK * sizes.max()
        sizes, vectors = sizes[kept], transposed[kept].T
    order = np.argsort(-sizes, kind="stable")[:width]
    vectors = vectors[:, order]
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])
