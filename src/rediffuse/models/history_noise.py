"""Noise on the histories of a training: each item diffuses along the item graph.

The forward process is heat on the graph of transitions. For a time t, each item of a history moves as a random walk in
continuous time: it takes k ~ Poisson(t) hops, each from item i to item j with the probability P[i, j]. So it ends at j
with the probability exp(-t (1 - P))[i, j], the heat kernel. The network reads the histories after the noise and
predicts the items that followed those before it.

    A[i, j] = sum of 0.6^(|q - p| - 1) over i at p and j at q, |q - p| <= 10, of the training histories
    P[i, j] = A[i, j] n_j^-1/2 / sum of the row          n: interactions of an item in training

Each row keeps the 100 largest A[i, j] n_j^-1/2. An item without neighbours stays where it is. Padding stays too.

The control is the uniform graph, on which every hop leads to any item: the noise of D3PM with a uniform transition
matrix (Austin et al., NeurIPS 2021, arXiv 2107.03006).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories
from rediffuse.graphs.item_graph import power, transitions

WINDOW, DECAY, NEIGHBOURS, POPULARITY_EXPONENT = 10, 0.6, 100, -0.5


class HistoryNoise:
    """Moves items of histories along a graph.

    Args:
        train: the training histories.
        num_items: I.
        time: t, the expected number of hops.
        uniform: whether every hop leads to any item.
        device: of the histories that will be moved.
    """

    def __init__(self, train: Histories, num_items: int, time: float, uniform: bool, device: torch.device) -> None:
        self.num_items, self.time, self.uniform = num_items, time, uniform
        if not uniform:
            counted = (torch.from_numpy(array).to(device) for array in _hops(train, num_items))
            self.starts, self.neighbours, self.cumulated = counted

    def move(self, items: Tensor) -> Tensor:
        """Items (B, L) int64 after the noise; numbers that are not items stay as they are."""
        hops = torch.poisson(torch.full(items.shape, self.time, device=items.device)).long()
        hops[items >= self.num_items] = 0
        moved = items.clone()
        while bool((moving := hops > 0).any()):
            moved[moving] = self._hop(moved[moving])
            hops -= 1
        return moved

    def _hop(self, items: Tensor) -> Tensor:
        """Where items (n,) are after one hop."""
        if self.uniform:
            return torch.randint(self.num_items, items.shape, device=items.device)
        first, last = self.starts[items], self.starts[items + 1]
        low, high = self.cumulated[first], self.cumulated[last]
        drawn = low + torch.rand(items.shape, dtype=torch.float64, device=items.device) * (high - low)
        # cumulated[n + 1] is the sum up to and with entry n.
        entry = torch.searchsorted(self.cumulated, drawn, right=True) - 1
        entry = torch.minimum(torch.maximum(entry, first), last - 1).clamp(min=0)
        return torch.where(first < last, self.neighbours[entry], items)


def _hops(train: Histories, num_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """P in rows: (I + 1,) where the entries of each item begin, (n,) items, (n + 1,) the running sum of the weights."""
    own = train.without_synthetic()
    damping = power(np.bincount(own.items, minlength=num_items), POPULARITY_EXPONENT)
    matrix = transitions(
        own.items,
        own.offsets,
        num_items,
        window=WINDOW,
        decay=DECAY,
        back=1.0,
        neighbours=NEIGHBOURS,
        column_weights=damping,
    ).matrix
    weights = matrix.data.astype(np.float64) * damping[matrix.indices]
    cumulated = np.concatenate(([0.0], np.cumsum(weights)))
    neighbours = matrix.indices.astype(np.int64) if matrix.nnz else np.zeros(1, np.int64)
    return matrix.indptr.astype(np.int64), neighbours, cumulated
