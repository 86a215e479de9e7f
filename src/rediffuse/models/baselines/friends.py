"""Friends' popularity: the items of most of a user's friends. A lower bound for models that read a social graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from rediffuse.batching.matrix import binary_matrix
from rediffuse.config import ModelConfig
from rediffuse.data.histories import Histories
from rediffuse.errors import DataError
from rediffuse.graphs import social_adjacency
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.sampling import Sampling
from rediffuse.nn import SizedByData
from rediffuse.nn.sparse import wrong_rows


class Friends(Model):
    """Scores items by the number of friends with an interaction; popularity breaks ties.

    A link makes both its users friends. Users without friends, and users who were not in training, get popular items.
    """

    name = "friends"
    trained_by_gradient = False

    def __init__(self, config: ModelConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        # CSR: row u has the items of u's friends, and how many friends interacted with each.
        self.offsets = SizedByData(trained=False, dtype=torch.int64)
        self.items = SizedByData(trained=False, dtype=torch.int32)
        self.counts = SizedByData(trained=False, dtype=torch.int32)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        arrays = [state_dict.get(f"{prefix}{name}.value") for name in ("offsets", "items", "counts")]
        given = [array for array in arrays if array is not None]
        if len(given) == 3 and (problem := wrong_rows(given[0], given[1], given[2], self.num_users, self.num_items)):
            others[-1].append(f"{prefix}{problem}")
        super()._load_from_state_dict(state_dict, prefix, *others)

    def check(self, data: TrainingData) -> None:
        if data.social is None or not (data.social.source != data.social.target).any():
            raise DataError(
                "friends learns from links between users, and the data have none.",
                "Read them with --social (Python: social=...), or use popularity.",
            )

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        assert data.social is not None
        links = social_adjacency(data.social.source, data.social.target, self.num_users)
        counts = sparse.csr_array(links @ binary_matrix(data.train, self.num_items))
        for buffer, array in ((self.offsets, counts.indptr), (self.items, counts.indices), (self.counts, counts.data)):
            buffer.set(torch.from_numpy(array))

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        found = users >= 0
        found[found] = self.offsets.value.diff().cpu().numpy()[users[found]] > 0
        return found

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        scores = (self.popularity / (self.popularity.max() + 1)).repeat(len(users), 1)
        for row in np.flatnonzero(self.has_user_state(users)):
            start, stop = self.offsets.value[users[row] : users[row] + 2].tolist()
            scores[row, self.items.value[start:stop].long()] += self.counts.value[start:stop]
        return scores
