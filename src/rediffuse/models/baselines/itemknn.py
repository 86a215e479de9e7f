"""Item k-nearest-neighbours: users of this item also used that one (Deshpande & Karypis, TOIS 2004).

Similarity is the cosine between the columns of the binary interaction matrix, with shrinkage (Bell & Koren, KDD 2007):
``c_ij / (sqrt(n_i n_j) + shrinkage)`` for c_ij users in common. Each item keeps its ``neighbours`` most similar ones.
The score of an item is the sum of its similarities to the distinct items of the history, times their weights in the
row (``input_weighting``).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from rediffuse.batching.matrix import binary_matrix
from rediffuse.config import Range
from rediffuse.data.histories import Histories
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.item_item import ItemItemConfig, ItemItemModel, nearest_items
from rediffuse.models.sampling import Sampling


class ItemKNNConfig(ItemItemConfig):
    """Options of item-kNN. The defaults are common values; `rediffuse tune itemknn` searches better ones."""

    search: ClassVar = {
        "neighbours": (20, 50, 100, 200, 500),
        "shrinkage": Range(0.1, 300.0, log=True),
        "input_weighting": ("none", "order", "half_life_events"),
        "half_life": Range(1.0, 100.0, log=True),
    }

    neighbours: int = Field(100, ge=1, description="Most similar items kept per item.")
    shrinkage: float = Field(10.0, ge=0, description="Lowers similarities that rest on few users.")


class ItemKNN(ItemItemModel):
    """Items that are similar to those of the history, by the users that they share.

    The similarities are sparse, stored as item numbers and weights (num_items, neighbours).
    """

    name = "itemknn"
    Config = ItemKNNConfig
    config: ItemKNNConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    near: Tensor
    weight: Tensor

    def __init__(self, config: ItemKNNConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        kept = min(config.neighbours, num_items)
        self.register_buffer("near", torch.zeros(num_items, kept, dtype=torch.int32))
        self.register_buffer("weight", torch.zeros(num_items, kept))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        near = state_dict.get(f"{prefix}near")
        if near is not None and near.numel() and not 0 <= int(near.min()) <= int(near.max()) < self.num_items:
            others[-1].append(f"{prefix}near: items are not 0 to {self.num_items - 1}")
        super()._load_from_state_dict(state_dict, prefix, *others)

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        self.near.zero_()
        self.weight.zero_()
        matrix = binary_matrix(data.train, data.num_items)
        for items, places, near, values in nearest_items(matrix, self.weight.shape[1], self.config.shrinkage):
            at = (torch.from_numpy(items), torch.from_numpy(places))
            self.near[at] = torch.from_numpy(near.astype(np.int32)).to(self.near.device)
            self.weight[at] = torch.from_numpy(values).to(self.weight.device)

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        device = self.weight.device
        items, _, counts, values = self.row_bags(histories, device)
        rows = torch.repeat_interleave(torch.arange(len(histories), device=device), counts)
        at = rows[:, None] * self.num_items + self.near[items]
        scores = torch.zeros(len(histories) * self.num_items, device=device)
        scores.index_add_(0, at.flatten(), (self.weight[items] * values[:, None]).flatten())
        return scores.view(len(histories), self.num_items)

    def item_neighbours(self, items: NDArray[np.int64]) -> Tensor:
        chosen = torch.from_numpy(items).to(self.weight.device)
        # Places without a neighbour hold item 0 with weight 0, so weights are added.
        rows = torch.zeros(len(items), self.num_items, device=self.weight.device)
        return rows.scatter_add_(1, self.near[chosen].long(), self.weight[chosen])
