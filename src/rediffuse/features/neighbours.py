"""Items that are alike in content."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.features.content import Content
from rediffuse.topk import exact_top_k

# Similarities that are held at once.
BLOCK = 4_000_000


def column_weights(content: Content, fitted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(num_sparse,) log(n / rows that have the value) over the n fitted rows: a value that most items have says little.

    Args:
        content: of the items.
        fitted: (items,) those that are counted.
    """
    rows = int(fitted.sum())
    counts = np.bincount(content.sparse[fitted].indices, minlength=content.sparse.shape[1])  # pyright: ignore
    return np.log(max(rows, 1) / np.maximum(counts, 1)).astype(np.float32)


def nearest(
    items: Content,
    own: NDArray[np.int64],
    among: Content,
    numbers: NDArray[np.int64],
    weights: NDArray[np.float32],
    count: int,
) -> sparse.csr_array:
    """(n, max(numbers) + 1) cosines of each item with the ``count`` others that are most like it, where positive.

    Args:
        items: content of n items.
        own: (n,) their numbers; none is its own neighbour.
        among: content of m items.
        numbers: (m,) their numbers, ascending.
        weights: factors of the columns of the sparse content, see `column_weights`.
        count: of neighbours. Which of equals are among them is not defined.
    """
    count = min(count, len(among))
    if not count or not len(items):
        return sparse.csr_array((len(items), int(numbers.max(initial=-1)) + 1), dtype=np.float32)
    left, right = _unit(items, weights), _unit(among, weights)
    right_columns = right[0].T.tocsr()
    rows, columns, values = [], [], []
    step = max(1, BLOCK // max(len(among), 1))
    for start in range(0, len(items), step):
        block = slice(start, start + step)
        cosines = left[1][block] @ right[1].T
        product = sparse.csr_array(left[0][block] @ right_columns)
        cosines[np.repeat(np.arange(len(cosines)), np.diff(product.indptr)), product.indices] += product.data
        place = np.minimum(np.searchsorted(numbers, own[block]), len(numbers) - 1)
        same = np.flatnonzero(numbers[place] == own[block])
        cosines[same, place[same]] = 0
        found, best = (part.numpy() for part in exact_top_k(torch.from_numpy(cosines), count))
        row, place = np.nonzero(found > 0)
        rows.append(row + start)
        columns.append(numbers[best[row, place]])
        values.append(found[row, place])
    data, row, column = (np.concatenate(part) for part in (values, rows, columns))
    return sparse.csr_array((data, (row, column)), shape=(len(items), int(numbers[-1]) + 1))


def _unit(content: Content, weights: NDArray[np.float32]) -> tuple[sparse.csr_array, NDArray[np.float32]]:
    """Both parts of the content, divided by the length of the whole row; rows of zeros stay zero."""
    matrix = content.sparse
    values = matrix.data * weights[matrix.indices]
    weighed = sparse.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape)
    lengths = np.sqrt(np.ravel(weighed.multiply(weighed).sum(axis=1)) + (content.dense**2).sum(axis=1))
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)
    scaled = sparse.csr_array(
        (values * np.repeat(scale, np.diff(matrix.indptr)), matrix.indices, matrix.indptr), shape=matrix.shape
    )
    return scaled, content.dense * scale[:, None]
