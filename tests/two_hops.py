"""A small model that diffuses mass over the items in two hops, as models whose scores are explained do."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.config import ClosedFormConfig
from rediffuse.data.histories import Histories
from rediffuse.models.base import Contribution, Model, TrainingData
from rediffuse.models.sampling import Sampling

PRIOR = 0.05


class TwoHops(Model):
    """Scores are the mass after one and after two hops from the history, and a little popularity."""

    name = "two-hops"
    Config = ClosedFormConfig
    trained_by_gradient = False
    explains_scores = True
    step: Tensor  # (num_items, num_items): where the mass of each item goes

    def __init__(self, config: ClosedFormConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.register_buffer("step", torch.zeros(num_items, num_items))

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        counts = np.zeros((self.num_items, self.num_items), dtype=np.float32)
        for user in range(data.num_users):
            row = data.train.row(user)
            np.add.at(counts, (row[:-1], row[1:]), 1)
        self.step.copy_(torch.from_numpy(counts / np.maximum(counts.sum(1, keepdims=True), 1)))

    def _start(self, histories: Histories) -> Tensor:
        start = torch.zeros(len(histories), self.num_items)
        start.index_put_(
            tuple(map(torch.from_numpy, (histories.owners, histories.items.astype(np.int64)))), torch.ones(())
        )
        lengths = torch.from_numpy(histories.lengths).float()
        return start / lengths[:, None]

    def _prior(self) -> Tensor:
        return PRIOR * self.popularity / self.popularity.sum()

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        first = self._start(histories) @ self.step
        return first + 0.5 * first @ self.step + self._prior()

    def contributions(
        self, histories: Histories, users: NDArray[np.int64], items: NDArray[np.int64]
    ) -> list[Contribution]:
        start, wanted, found = self._start(histories)[0], torch.from_numpy(items), []
        for item in np.unique(histories.items).tolist():
            first = start[item] * self.step[item]
            found.append(Contribution(item, "hop 1", first[wanted].double().numpy()))
            found.append(Contribution(item, "hop 2", (0.5 * first @ self.step)[wanted].double().numpy()))
        return [*found, Contribution(-1, "popularity", self._prior()[wanted].double().numpy())]

    def hops(self, histories: Histories, users: NDArray[np.int64]) -> list[tuple[str, Tensor]]:
        start = self._start(histories)
        first = start @ self.step
        second = first @ self.step
        scores = self.score_known(histories, users, Sampling())
        return [("history", start[0]), ("hop 1", first[0]), ("hop 2", second[0]), ("scores", scores[0])]

    def map_vectors(self) -> Tensor:
        return torch.linalg.eigh(self.step + self.step.T).eigenvectors[:, -8:]
