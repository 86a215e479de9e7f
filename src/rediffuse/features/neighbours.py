"""Items that are alike in content."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rediffuse.features.content import Content

# Similarities that are held at once.
BLOCK = 16_000_000


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
    left, right = _unit(items, weights), _unit(among, weights)
    count = min(count, len(among))
    rows, columns, values = [], [], []
    step = max(1, BLOCK // max(len(among), 1))
    for start in range(0, len(items), step):
        block = slice(start, start + step)
        cosines = (left[0][block] @ right[0].T).toarray() + left[1][block] @ right[1].T  # pyright: ignore
        place = np.minimum(np.searchsorted(numbers, own[block]), max(len(numbers) - 1, 0))
        same = np.flatnonzero(numbers[place] == own[block]) if len(numbers) else np.zeros(0, dtype=np.int64)
        cosines[same, place[same]] = 0
        best = np.argpartition(-cosines, count - 1, axis=1)[:, :count] if count else np.zeros((len(cosines), 0), int)
        found = np.take_along_axis(cosines, best, axis=1)
        row, place = np.nonzero(found > 0)
        rows.append(row + start)
        columns.append(numbers[best[row, place]])
        values.append(found[row, place])
    width = int(numbers.max(initial=-1)) + 1
    parts = (np.concatenate(part) if part else np.zeros(0, int) for part in (values, rows, columns))
    data, row, column = parts
    return sparse.csr_array((data.astype(np.float32), (row, column)), shape=(len(items), width))


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
