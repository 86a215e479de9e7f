"""Popularity: every user gets the items with the most interactions. Every other model must exceed it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.config import ClosedFormConfig
from rediffuse.data.histories import Histories
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.sampling import Sampling


class Popularity(Model):
    """The same list for all users: the items with the most training interactions."""

    name = "popularity"
    Config = ClosedFormConfig
    trained_by_gradient = False
    holds_users = False

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        self.fallback.copy_(self.popularity)  # users without a history get the same list; recent items: `recentpop`

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.popularity.repeat(len(histories), 1)
