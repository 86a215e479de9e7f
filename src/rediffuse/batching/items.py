"""Batches of items, for models that learn something about each item."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.batching.sequences import rank_slice


@dataclass(frozen=True)
class ItemBatch:
    """B items.

    Attributes:
        items: (B,) int64 item numbers.
        rank_weight: see `rediffuse.batching.sequences.SequenceBatch`.
    """

    items: Tensor
    rank_weight: float = 1.0

    def to(self, device: torch.device) -> ItemBatch:
        return ItemBatch(self.items.to(device), self.rank_weight)


class ItemBatches:
    """One epoch over some items. No user is in these batches.

    Args:
        items: (n,) item numbers.
        batch_size: items per batch.
        rng: the order depends on it alone.
    """

    def __init__(self, items: NDArray[np.int64], *, batch_size: int, rng: np.random.Generator) -> None:
        self.order, self.batch_size = rng.permutation(items), batch_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> ItemBatch:
        """Batch ``index``, or the slice of it that belongs to ``rank``."""
        whole = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        items, rank_weight = rank_slice(whole, rank, ranks)
        return ItemBatch(torch.from_numpy(items), rank_weight)

    def users(self, index: int) -> NDArray[np.int64]:
        return np.empty(0, dtype=np.int64)
