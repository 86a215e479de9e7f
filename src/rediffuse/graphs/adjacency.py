"""Normalised adjacency matrices."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor


def bipartite_adjacency(links: sparse.csr_array) -> Tensor:
    """D^-1/2 A D^-1/2 of the graph whose edges run between rows and columns of ``links``.

    Args:
        links: (n, m), non-negative; row u and column i are joined where it is not zero.

    Returns:
        Sparse CSR float32 (n + m, n + m), symmetric; nodes are the rows, then the columns. A node without edges has
        an empty row.
    """
    square = sparse.csr_array(sparse.block_array([[None, links], [links.T, None]]))
    degree = np.ravel(square.sum(axis=1))
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    rows = np.repeat(np.arange(len(degree)), np.diff(square.indptr))
    values = square.data * scale[rows] * scale[square.indices]
    with warnings.catch_warnings():  # torch says at every use that CSR support is in beta
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(square.indptr.astype(np.int64)),
            torch.from_numpy(square.indices.astype(np.int64)),
            torch.from_numpy(values.astype(np.float32)),
            size=square.shape,
        )
