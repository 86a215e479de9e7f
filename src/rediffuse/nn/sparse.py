"""A sparse matrix in the state of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from rediffuse.nn.sized import SizedByData


def wrong_rows(offsets: Tensor, numbers: Tensor, values: Tensor, rows: int, columns: int) -> str | None:
    """What is wrong with compressed sparse rows, which come from a file; None if nothing is, or all are empty.

    Args:
        offsets: (rows + 1,).
        numbers, values: (n,) columns and their values.
        rows, columns: the shape of the matrix.
    """
    if not (offsets.numel() or numbers.numel() or values.numel()):
        return None
    if offsets.shape != (rows + 1,) or numbers.dim() != 1 or values.shape != numbers.shape:
        return f"offsets, columns and values have the shapes {[tuple(x.shape) for x in (offsets, numbers, values)]}"
    if offsets[0] != 0 or offsets[-1] != len(numbers) or (offsets.diff() < 0).any():
        return "offsets do not ascend from 0 to the number of values"
    if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < columns):
        return f"columns are not 0 to {columns - 1}"
    return None


def add_empty_rows(state: dict[str, Tensor], prefix: str, at: int, added: int) -> None:
    """Insert rows without entries before row ``at`` into the state dict of a `SparseMatrix` that is not empty."""
    offsets = state[key := f"{prefix}offsets.value"]
    state[key] = torch.cat((offsets[:at], offsets[at].repeat(added), offsets[at:]))


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
        """Store a matrix. Arrays of the right type are shared, so the matrix must not be changed afterwards."""
        arrays = (matrix.indptr, matrix.indices, matrix.data)
        for buffer, array in zip((self.offsets, self.indices, self.values), arrays, strict=True):
            dtype = {torch.int64: np.int64, torch.int32: np.int32, torch.float32: np.float32}[buffer.value.dtype]
            buffer.value.data = torch.from_numpy(array.astype(dtype, copy=False)).to(buffer.value.device)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        self._cached = None  # loading may write into the same arrays
        arrays = [state_dict.get(f"{prefix}{name}.value") for name in ("offsets", "indices", "values")]
        given = [array for array in arrays if array is not None]
        if len(given) == 3 and (problem := wrong_rows(given[0], given[1], given[2], *self.shape)):
            others[-1].append(f"{prefix}: {problem}")
        super()._load_from_state_dict(state_dict, prefix, *others)

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
