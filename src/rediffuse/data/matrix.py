"""Histories as a sparse users x items matrix."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from rediffuse.data.histories import Histories


def binary_matrix(histories: Histories, num_items: int) -> sparse.csr_array:
    """(rows, num_items) float32 with a one where the row's person touched the item, however often."""
    ones = np.ones(len(histories.items), dtype=np.float32)
    shape = (len(histories), num_items)
    matrix = sparse.csr_array((ones, histories.items.astype(np.int32), histories.offsets.copy()), shape=shape)
    matrix.sum_duplicates()  # also sorts each row's items
    matrix.data.fill(1.0)
    return matrix
