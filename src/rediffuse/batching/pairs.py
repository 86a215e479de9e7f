"""Batches of (user, positive item, negative items), for models that learn from pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.batching.negatives import draw_negatives, interaction_keys
from rediffuse.batching.sequences import rank_slice
from rediffuse.data.histories import Histories, index_type


@dataclass(frozen=True)
class PairBatch:
    """n interactions, each with its negatives.

    Attributes:
        users, positives: (n,) int64.
        negatives: (n, k) int64.
        rank_weight: see `rediffuse.batching.sequences.SequenceBatch`.
    """

    users: Tensor
    positives: Tensor
    negatives: Tensor
    rank_weight: float = 1.0

    def to(self, device: torch.device) -> PairBatch:
        fields = (self.users, self.positives, self.negatives)
        return PairBatch(*(x.to(device) for x in fields), rank_weight=self.rank_weight)


class PairBatches:
    """One epoch over all training interactions, each with items that its user has not interacted with.

    Args:
        histories: training interactions.
        num_items: size of the catalogue; negatives are drawn uniformly from it.
        batch_size: interactions per batch.
        rng: order and negatives depend on it alone.
        negatives: k, negatives per interaction.
    """

    def __init__(
        self, histories: Histories, *, num_items: int, batch_size: int, rng: np.random.Generator, negatives: int = 1
    ) -> None:
        self.histories, self.batch_size = histories, batch_size
        self.order = np.arange(len(histories.items), dtype=index_type(len(histories.items)))
        rng.shuffle(self.order)
        self.negatives, self.num_items = negatives, num_items
        self.keys, self.seed = interaction_keys(histories, num_items), int(rng.integers(2**62))

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def _interactions(self, index: int) -> NDArray[Any]:
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def _owners(self, interactions: NDArray[Any]) -> NDArray[np.int64]:
        return np.searchsorted(self.histories.offsets, interactions, side="right") - 1

    def users(self, index: int) -> NDArray[np.int64]:
        """Users with an interaction in batch ``index``."""
        return np.unique(self._owners(self._interactions(index)))

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> PairBatch:
        """Batch ``index``, or the slice of it that belongs to ``rank``."""
        interactions = self._interactions(index)
        owners, items = self._owners(interactions), self.histories.items[interactions].astype(np.int64)
        # Drawn for the whole batch, so that all ranks agree on it.
        rng = np.random.default_rng([self.seed, index])
        drawn = draw_negatives(np.repeat(owners, self.negatives), self.keys, self.num_items, rng)
        rows, rank_weight = rank_slice(np.arange(len(interactions)), rank, ranks)
        columns = (owners, items, drawn.reshape(-1, self.negatives))
        return PairBatch(*(torch.from_numpy(column[rows]) for column in columns), rank_weight=rank_weight)
