"""Batches of (person, touched item, item not touched) for models that learn from pairs."""

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
    """Attributes:
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
    """Every training event once an epoch, each with items that the person never touched in training.

    Args:
        histories: training events.
        num_items: size of the catalogue, from which negatives are drawn evenly.
        batch_size: events per batch.
        rng: order and negatives depend on it alone.
        negatives: k, such items per event.
    """

    def __init__(
        self, histories: Histories, *, num_items: int, batch_size: int, rng: np.random.Generator, negatives: int = 1
    ) -> None:
        self.histories, self.batch_size = histories, batch_size
        self.order = np.arange(len(histories.items), dtype=index_type(len(histories.items)))
        rng.shuffle(self.order)
        self.negatives, self.num_items = negatives, num_items
        self.touched, self.seed = interaction_keys(histories, num_items), int(rng.integers(2**62))

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def _owners(self, events: NDArray[Any]) -> NDArray[np.int64]:
        return np.searchsorted(self.histories.offsets, events, side="right") - 1

    def users(self, index: int) -> NDArray[np.int64]:
        """People with an event in batch ``index``."""
        return np.unique(self._owners(self.order[index * self.batch_size : (index + 1) * self.batch_size]))

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> PairBatch:
        """Batch ``index``, or the part of it that falls to ``rank``."""
        events = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        owners, items = self._owners(events), self.histories.items[events].astype(np.int64)
        # Drawn for the whole batch, so that it is the same whoever asks.
        rng = np.random.default_rng([self.seed, index])
        drawn = draw_negatives(np.repeat(owners, self.negatives), self.touched, self.num_items, rng)
        part, rank_weight = rank_slice(np.arange(len(events)), rank, ranks)
        columns = (owners, items, drawn.reshape(-1, self.negatives))
        return PairBatch(*(torch.from_numpy(column[part]) for column in columns), rank_weight=rank_weight)
