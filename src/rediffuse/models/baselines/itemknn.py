"""Item k-nearest-neighbours: users of this item also used that one (Deshpande & Karypis, TOIS 2004).

Similarity is the cosine between the columns of the binary interaction matrix, with shrinkage (Bell & Koren, KDD 2007):
``c_ij / (sqrt(n_i n_j) + shrinkage)`` for c_ij users in common. Each item keeps its ``neighbours`` most similar ones.
The score of an item is the sum of its similarities to the distinct items of the history.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor

from rediffuse.batching.matrix import bags, binary_matrix
from rediffuse.config import ClosedFormConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.sampling import Sampling

# Items whose similarities to all others are in memory at once.
BLOCK = 1024


class ItemKNNConfig(ClosedFormConfig):
    """Options of item-kNN. The defaults are common values; `rediffuse tune itemknn` searches better ones."""

    search: ClassVar = {"neighbours": (20, 50, 100, 200, 500), "shrinkage": Range(0.1, 300.0, log=True)}

    neighbours: int = Field(100, ge=1, description="Most similar items kept per item.")
    shrinkage: float = Field(10.0, ge=0, description="Lowers similarities that rest on few users.")


class ItemKNN(Model):
    """Sparse item-item similarities, stored as item numbers and weights (num_items, neighbours)."""

    name = "itemknn"
    Config = ItemKNNConfig
    config: ItemKNNConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False
    near: Tensor
    weight: Tensor

    def __init__(self, config: ItemKNNConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        kept = min(config.neighbours, num_items)
        self.register_buffer("near", torch.zeros(num_items, kept, dtype=torch.int32))
        self.register_buffer("weight", torch.zeros(num_items, kept))

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        matrix = binary_matrix(data.train, data.num_items)
        norms = np.sqrt(np.ravel(matrix.sum(axis=0)))
        transposed = sparse.csr_array(matrix.T)
        for start in range(0, data.num_items, BLOCK):
            common = sparse.csr_array(transposed[start : start + BLOCK] @ matrix)
            rows = np.repeat(np.arange(min(BLOCK, data.num_items - start)), np.diff(common.indptr))
            columns = common.indices
            similarity = common.data / (norms[rows + start] * norms[columns] + self.config.shrinkage)
            similarity[rows + start == columns] = 0
            # Within each row, most similar first, ties by item number.
            order = np.lexsort((columns, -similarity, rows))
            place = np.arange(len(order)) - np.repeat(common.indptr[:-1], np.diff(common.indptr))
            kept = (place < self.weight.shape[1]) & (similarity[order] > 0)
            at = (torch.from_numpy(rows[order][kept] + start), torch.from_numpy(place[kept]))
            self.near[at] = torch.from_numpy(columns[order][kept].astype(np.int32))
            self.weight[at] = torch.from_numpy(similarity[order][kept].astype(np.float32))

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        device = self.weight.device
        items, _, counts = bags(histories, self.num_items, device)
        rows = torch.repeat_interleave(torch.arange(len(histories), device=device), counts)
        at = rows[:, None] * self.num_items + self.near[items]
        scores = torch.zeros(len(histories) * self.num_items, device=device)
        scores.index_add_(0, at.flatten(), self.weight[items].flatten())
        return scores.view(len(histories), self.num_items)
