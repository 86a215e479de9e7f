"""A sparse matrix in the state of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import nn

from rediffuse.nn.sized import SizedByData


class SparseMatrix(nn.Module):
    """A sparse matrix that is saved with the model: compressed rows, float32. It is empty until it is `set` or loaded.

    Args:
        rows, columns: its shape.
    """

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.shape = (rows, columns)
        self.offsets = SizedByData(trained=False, dtype=torch.int64)
        self.indices = SizedByData(trained=False, dtype=torch.int32)
        self.values = SizedByData(trained=False, dtype=torch.float32)
        self._cached: tuple[int, sparse.csr_array] | None = None

    def set(self, matrix: sparse.csr_array) -> None:
        """Store a matrix."""
        self.offsets.set(torch.from_numpy(matrix.indptr.astype(np.int64)))
        self.indices.set(torch.from_numpy(matrix.indices.astype(np.int32)))
        self.values.set(torch.from_numpy(matrix.data.astype(np.float32)))

    def _load_from_state_dict(self, *arguments: Any) -> None:  # pyright: ignore
        self._cached = None  # loading may write into the same arrays
        super()._load_from_state_dict(*arguments)

    @property
    def csr(self) -> sparse.csr_array:
        """The matrix for SciPy, which shares the memory of the stored arrays where they are on the CPU."""
        key = self.values.value.data_ptr()
        if self._cached is None or self._cached[0] != key:
            arrays = (self.values.value, self.indices.value, self.offsets.value)
            values, indices, offsets = (array.cpu().numpy() for array in arrays)
            if not len(offsets):
                return sparse.csr_array(self.shape, dtype=np.float32)
            self._cached = key, sparse.csr_array((values, indices, offsets), shape=self.shape)
        return self._cached[1]
