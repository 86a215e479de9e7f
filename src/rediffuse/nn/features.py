"""Projection of user and item features to the width of embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rediffuse.nn.sized import SizedByData


def standardised(x: Tensor, scale: float) -> Tensor:
    """``scale`` (x - mean) / std over all elements of the matrix (DiffNet's released code); zeros if x is constant."""
    std, mean = torch.std_mean(x, correction=0)
    return scale * (x - mean) / (std + 1e-12)


class FeatureProjection(nn.Module):
    """z = standardised(sigmoid(standardised(F) W + b)), as in DiffNet's released code.

    Args:
        size: width of z.
        scale: standard deviation of both standardisations.
    """

    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.size, self.scale = size, scale
        self.weight = SizedByData(columns=size)
        self.bias = nn.Parameter(torch.zeros(size))

    def set_width(self, width: int) -> None:
        """Initialise the weights for features of ``width`` values (Glorot & Bengio 2010)."""
        self.weight.set(nn.init.xavier_uniform_(torch.empty(width, self.size)))

    def forward(self, features: Tensor) -> Tensor:
        """z (n, size) of features (n, width), which are standardised already."""
        return standardised(torch.sigmoid(features @ self.weight.value + self.bias), self.scale)
