"""The encoded form of item or user features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True, eq=False)
class Content:
    """What describes n items or users, in numbers.

    Attributes:
        sparse: (n, num_sparse) float32: categories and bins of numbers.
        dense: (n, num_dense) float32: text and vectors.
    """

    sparse: sparse.csr_array
    dense: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.dense)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> Content:
        """Some of its rows, in the order of ``rows``; or those where ``rows`` (n,) bool is true."""
        rows = np.asarray(rows)
        rows = rows if rows.size else rows.astype(np.int64)
        matrix: Any = self.sparse
        return Content(sparse.csr_array(matrix[rows]), self.dense[rows])

    def matrix(self) -> NDArray[np.float32]:
        """(n, num_sparse + num_dense) both parts as one dense matrix."""
        return np.concatenate((self.sparse.toarray(), self.dense), axis=1)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) which rows say anything: not all of their numbers are zero."""
        return (np.diff(self.sparse.indptr) > 0) | (self.dense != 0).any(axis=1)
