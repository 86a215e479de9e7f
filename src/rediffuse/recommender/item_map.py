"""The item map: the item vectors in two dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rediffuse.errors import ConfigError


@dataclass(frozen=True)
class ItemMap:
    """The first two principal components of the item vectors, normalised to length one. It is on the CPU.

    Attributes:
        centre: (d,) mean of the normalised vectors.
        axes: (d, 2) the components, orthonormal.
        points: (num_items, 2) positions of the items.
        explained: share of the variance that the map shows.
    """

    centre: Tensor
    axes: Tensor
    points: Tensor
    explained: float

    def place(self, vectors: Tensor) -> Tensor:
        """(B, 2) positions of vectors (B, d) on the map."""
        return (F.normalize(vectors.to(self.centre.device).float(), dim=1) - self.centre) @ self.axes


def item_map(vectors: Tensor) -> ItemMap:
    """Compute the item map of item vectors (num_items, d), d at least 2.

    The sign of an axis is arbitrary; it is chosen so that the largest weight is positive. So a run always has the same
    map.

    Raises:
        ConfigError: d is 1.
    """
    if vectors.shape[1] < 2:
        raise ConfigError("Item vectors of size 1 have no map.", "Train with embedding_size of at least 2.")
    directions = F.normalize(vectors.float(), dim=1)
    centre = directions.mean(0)
    centred = directions - centre
    values, axes = torch.linalg.eigh(centred.T @ centred)
    axes = axes[:, [-1, -2]]
    signs = torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    axes = axes * torch.where(signs == 0, 1.0, signs)
    return ItemMap(centre, axes, centred @ axes, float(values[-2:].sum() / values.sum().clamp_min(1e-30)))
