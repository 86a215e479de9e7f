"""Recent popularity: every user gets the items with the most interactions of late.

An interaction counts ``0.5 ** (days before the latest interaction / half_life)``. Popularity at present is a much
stronger floor than popularity over all time (Ji et al., SIGIR 2020), which is the limit of long half-lives.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from rediffuse.batching.recency import FALLBACK_HALF_LIFE, recent_popularity
from rediffuse.config import ClosedFormConfig
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError
from rediffuse.models.base import Model, TrainingData, Validation
from rediffuse.models.sampling import Sampling

# Half-lives in days that validation compares; infinity is popularity over all time.
HALF_LIVES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, math.inf)


class RecentPopularityConfig(ClosedFormConfig):
    """Options of recent popularity. There is nothing to search: validation chooses the half-life in every training."""

    refit: bool = Field(
        True, description="After options are chosen and measured, learn from the validation interactions too."
    )
    half_life: float | None = Field(
        None,
        gt=0,
        description="Days in which a weight halves. None: chosen on validation data, or 30 if there are none.",
    )


class RecentPopularity(Model):
    """The same list for all users: the items with the most interactions of late.

    ``recent`` is (half-lives, num_items) float32.

    Raises:
        DataError: the data have no timestamps; in `check`.
    """

    name = "recentpop"
    Config = RecentPopularityConfig
    config: RecentPopularityConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False
    holds_users = False
    recent: Tensor

    def __init__(self, config: RecentPopularityConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.half_lives = HALF_LIVES if config.half_life is None else (config.half_life,)
        self.chosen = config.half_life or FALLBACK_HALF_LIFE
        self.register_buffer("recent", torch.zeros(len(self.half_lives), num_items))

    def check(self, data: TrainingData) -> None:
        if not data.has_timestamps:
            raise DataError(
                "recentpop needs the times of interactions, and the data have none.",
                "Use popularity, which counts all interactions alike.",
            )

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        for row, half_life in enumerate(self.half_lives):
            recent = recent_popularity(data.train, self.num_items, half_life)
            self.recent[row].copy_(torch.from_numpy(recent.astype(np.float32)))
        self.fallback.copy_(self.at_chosen())

    def at_chosen(self) -> Tensor:
        """(num_items,) recent popularity at the half-life that was chosen."""
        return self.recent[self.half_lives.index(self.chosen)]

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Choose the half-life with the best selection metric; ties go to the longest."""
        if self.config.half_life is not None:
            return {}

        def score(histories: Histories, users: NDArray[np.int64]) -> Iterator[Tensor]:
            for of_half_life in self.recent:
                yield of_half_life.repeat(len(histories), 1)

        values = [float(of_users.mean()) for of_users in validate.compare(score)]
        best = max(range(len(values)), key=lambda row: (values[row], self.half_lives[row]))
        names = [_name(half_life) for half_life in self.half_lives]
        return {"half_life": names[best], "metric_by_half_life": dict(zip(names, values, strict=True))}

    def resolve(self, resolved: dict[str, Any]) -> None:
        if "half_life" in resolved:
            self.chosen = float(resolved["half_life"])
            self.fallback.copy_(self.at_chosen())  # users without a history get the same list

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.at_chosen().repeat(len(histories), 1)


def _name(half_life: float) -> str:
    """As JSON holds it, which has no infinity: "30", or "inf"."""
    return f"{half_life:g}"
