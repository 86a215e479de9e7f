"""The base class of models that are made of several models."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.histories import Histories
from rediffuse.models.base import Model
from rediffuse.models.prior import NeuralModel
from rediffuse.models.sampling import Sampling


class Composite(NeuralModel):
    """Several models, one of which is active in each phase. All inference goes to the active model.

    A prior is that of the whole; the models that it is made of have none.
    """

    @property
    def active_model(self) -> Model:
        """The model that recommends in the present phase."""
        raise NotImplementedError

    def as_trained(self, histories: Histories, users: NDArray[np.int64]) -> Histories:
        """Histories (B rows) in the form that the active model was trained on."""
        return histories

    def prepare(self) -> None:
        self.active_model.prepare()

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.active_model.score_known(self.as_trained(histories, users), users, sampling)

    @property
    def max_sampling_steps(self) -> int | None:
        return self.active_model.max_sampling_steps

    def network_passes(self, sampling: Sampling) -> int:
        return self.active_model.network_passes(sampling)

    @property
    def network_gives_logits(self) -> bool:
        return self.active_model.scores_are_logits

    def index_vectors(self) -> Tensor | None:
        return self.active_model.index_vectors()

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.active_model.query_vectors(self.as_trained(histories, users), users, sampling)

    def scores_by_vectors(self, queries: Tensor, items: Tensor, histories: Histories) -> Tensor:
        return self.active_model.scores_by_vectors(queries, items, histories)
