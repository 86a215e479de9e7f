"""What every model is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rediffuse.config import ModelConfig
from rediffuse.data.dataset import KnowledgeGraph, SocialGraph
from rediffuse.data.histories import Histories
from rediffuse.models.sampling import Sampling


class Batches(Protocol):
    """The batches of one epoch; `get` returns what falls to one of several ranks."""

    def __len__(self) -> int: ...
    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Any: ...


@dataclass(frozen=True)
class TrainingData:
    """What a model may learn from. It has no reference to validation targets or to the test subset."""

    train: Histories
    num_users: int
    num_items: int
    popularity: NDArray[np.int64]  # (num_items,) training events per item
    item_table: pl.DataFrame | None = None  # row i describes item i
    user_table: pl.DataFrame | None = None  # row u describes user u
    social: SocialGraph | None = None
    kg: KnowledgeGraph | None = None
    seed: int = 0  # of the training, for noise that is drawn between phases


class Model(nn.Module):
    """A recommender over a catalogue of ``num_items``.

    Subclasses set `name`, `Config`, and either `fit` (closed form) or `batches` and `loss` (trained by the loop).
    The buffer `popularity` (num_items,) answers for people without any known history.
    """

    name: ClassVar[str]
    Config: ClassVar[type[ModelConfig]] = ModelConfig
    trained_by_gradient: ClassVar[bool] = True
    phases: ClassVar[tuple[str, ...]] = ("fit",)
    stochastic: ClassVar[bool] = False
    reads_synthetic: ClassVar[bool] = False  # whether events that a generator wrote train it and stand in histories
    reads_tables: ClassVar[bool] = False  # whether it learns from what the tables say of items or people
    reads_times: ClassVar[bool] = False  # whether answers depend on when events happened, not on their order alone
    popularity: Tensor

    def __init__(self, config: ModelConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config
        self.num_items, self.num_users = num_items, num_users
        self.register_buffer("popularity", torch.zeros(num_items))

    # --- learning ------------------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        """Refuse data that lack what the model learns from; called before anything is written.

        Raises:
            DataError: says what is missing.
        """

    def fit(self, data: TrainingData) -> None:
        """Learn in closed form. Trained models only take the popularity of items."""
        self.popularity.copy_(torch.from_numpy(np.asarray(data.popularity, dtype=np.float32)))

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        """Told before each phase of training; a model of several phases says here what is trained."""

    def training_options(self, phase: str) -> ModelConfig:
        """The options of the loop in a phase."""
        return self.config

    def chosen_by_ranking(self, phase: str) -> bool:
        """Whether the weights of a phase are those with the best validation metric; otherwise they are the last."""
        return True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, as torch's optimisers take it; ``learning_rate_factor`` multiplies the rate of a group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def batches(self, data: TrainingData, rng: np.random.Generator) -> Batches:
        """The batches of one epoch, in an order that depends on ``rng`` alone."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """The scalar loss of a batch."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Tensor:
        """Same as `loss`; the name that distributed wrappers call."""
        return self.loss(batch)

    def prepare(self) -> None:
        """Derive what answers need from the weights; called before answers whenever the weights have changed."""

    def calibrate(self, validate: Callable[[], float]) -> dict[str, Any]:
        """Settle what is chosen on validation data after training; returns what was measured."""
        return {}

    def resolve(self, resolved: dict[str, Any]) -> None:
        """Take over what `calibrate` settled, also after loading."""

    def artifacts(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, pl.DataFrame]:
        """What training found beside the weights, as files of the run folder: name.parquet -> table."""
        return {}

    # --- answering -----------------------------------------------------------------------------------------

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(B,) whether there is an answer of their own for these people (-1: unknown) even without any history."""
        return np.zeros(len(users), dtype=np.bool_)

    @torch.inference_mode()
    def score(
        self,
        histories: Histories,
        *,
        users: NDArray[np.int64] | None = None,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Scores (B, num_items) float32 of all items for people with these histories; higher is better.

        A person without history gets the popularity of items, unless the model `has_user_state` them. The answer for a row
        depends on the row and ``seed`` alone, not on the rest of the batch.

        Args:
            histories: B rows of item numbers, oldest first.
            users: (B,) numbers of the people in training, -1 for those who were not in it; None: none was. Only
                models that learn something about each person look at it.
            seed: of the noise of a stochastic model.
            sampling: all that can be chosen about the drawing, instead of ``seed`` alone.
        """
        drawn = sampling or Sampling(seed)
        return self.score_with_fallback(histories, users, lambda known, who: self.score_known(known, who, drawn))

    def score_with_fallback(
        self,
        histories: Histories,
        users: NDArray[np.int64] | None,
        score: Callable[[Histories, NDArray[np.int64]], Tensor],
    ) -> Tensor:
        """Scores as of `score`: by the function for people with an answer of their own, by popularity for others."""
        who = np.full(len(histories), -1, dtype=np.int64) if users is None else users
        if not self.reads_synthetic:
            histories = histories.without_synthetic()
        known = np.flatnonzero((histories.lengths > 0) | self.has_user_state(who))
        if len(known) == len(histories):
            return score(histories, who)
        scores = self.popularity.repeat(len(histories), 1)
        if len(known):
            scores[torch.from_numpy(known)] = score(histories.take(known), who[known])
        return scores

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        """Scores (B, num_items) float32 for histories of at least one item, or people whom the model has_user_state;
        arguments as for `score`."""
        raise NotImplementedError

    # --- looking inside ------------------------------------------------------------------------------------

    @property
    def max_sampling_steps(self) -> int | None:
        """The most steps of denoising that an answer can be asked for, or None where there is nothing to choose."""
        return None

    def network_passes(self, sampling: Sampling) -> int:
        """How many passes through the network an answer takes."""
        return 1

    def index_vectors(self) -> Tensor | None:
        """(num_items, d) the vectors that `query_vectors` are multiplied by to rank items; None: ranked otherwise."""
        return None

    def scores_by_vectors(self, queries: Tensor, items: Tensor, histories: Histories) -> Tensor:
        """(B, num_items) the scores, from `query_vectors` (B, d) of ``histories`` and from `index_vectors`."""
        return queries @ items.T

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        """(B, d) for people with an answer of their own; arguments as for `score_known`.

        Inner products with `index_vectors` are the scores, but for what `scores_by_vectors` says of items seen.
        """
        raise NotImplementedError
