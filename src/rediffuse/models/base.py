"""The interface of every model: what training, scoring and the run folder call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rediffuse.batching.recency import FALLBACK_HALF_LIFE, recent_popularity
from rediffuse.config import ModelConfig
from rediffuse.data.dataset import KnowledgeGraph, SocialGraph
from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Task
from rediffuse.diffusion import NoiseLevels
from rediffuse.models.sampling import Sampling
from rediffuse.nn.sized import with_rows

if TYPE_CHECKING:
    from rediffuse.features import Content


class Batches(Protocol):
    """The batches of one epoch."""

    def __len__(self) -> int:
        """Number of batches."""
        ...

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> Any:
        """Batch ``index``, or the slice of it that belongs to ``rank`` of ``ranks``. It has a method ``to(device)``."""
        ...

    def users(self, index: int) -> NDArray[np.int64]:
        """Numbers of the users in batch ``index``, for messages about it."""
        ...


class Validation(Protocol):
    """The validation subset, as `Model.calibrate` sees it."""

    @property
    def task(self) -> Task: ...

    @property
    def owners(self) -> NDArray[np.int64]:
        """(n,) the user of each value that `compare` gives. Where targets are predicted one after the other, users have
        several."""
        ...

    def __call__(self) -> float:
        """The selection metric of the model as it is."""
        ...

    def compare(
        self, score: Callable[[Histories, NDArray[np.int64]], Iterable[Tensor]], metric: str | None = None
    ) -> list[NDArray[np.float64]]:
        """A metric of many settings, in one pass over the users (some of them, if there are many).

        Args:
            score: called with blocks of histories (B rows) and their user numbers (B,); yields the scores
                (B, num_items) of each setting, always in the same order. The tensors are changed.
            metric: None: the selection metric.

        Returns:
            (n,) the metric of each user or target, per setting.
        """
        ...


def is_clearly_better(values: NDArray[np.float64], than: NDArray[np.float64], owners: NDArray[np.int64]) -> bool:
    """Whether a metric (n,) is better by more than the standard error of the mean difference, users being independent.

    What is not clearly better than the usual setting does not replace it: among settings that are as good, the best on
    validation data is often the luckiest. Values of one user are alike, so the error is clustered by user.

    Args:
        values, than: what `Validation.compare` gave for two settings.
        owners: (n,) the user of each value.
    """
    gain = values - than
    _, groups = np.unique(owners, return_inverse=True)
    sums = np.bincount(groups, weights=gain - gain.mean())
    return bool(gain.mean() > np.sqrt((sums**2).sum()) / len(gain))


@dataclass(frozen=True)
class Contribution:
    """A part of the scores of some items.

    Attributes:
        source: number of the item of the history that it comes from; -1: it comes from no interaction of the user.
        part: what carried it, for example "hop 1" or "recent popularity".
        values: (n,) float64, one per item that is explained.
    """

    source: int
    part: str
    values: NDArray[np.float64]


@dataclass(frozen=True)
class TrainingData:
    """What a model may learn from. It holds neither validation targets nor the test subset.

    Attributes:
        train: training interactions, one row per user.
        num_users: users in training.
        num_items: items in the catalogue.
        popularity: (num_items,) training interactions of each item.
        item_table: row i describes item i.
        user_table: row u describes user u.
        social: links between users.
        kg: knowledge graph of the items.
        seed: seed of the training, for noise that is drawn between phases.
        has_timestamps: whether times are seconds since the epoch; False: they are an order, or there are none.
        content, user_content: of items and users, for models with ``reads_content``; None where the dataset declares no
            features of them.
    """

    train: Histories
    num_users: int
    num_items: int
    popularity: NDArray[np.int64]
    item_table: pl.DataFrame | None = None
    user_table: pl.DataFrame | None = None
    social: SocialGraph | None = None
    kg: KnowledgeGraph | None = None
    seed: int = 0
    has_timestamps: bool = False
    content: Content | None = None
    user_content: Content | None = None


class Model(nn.Module):
    """A recommender over a catalogue of ``num_items`` items.

    A subclass sets `name` and `Config`, and implements `score_known` and either `fit` (closed form) or `batches` and
    `loss` (trained by the loop). Its constructor takes ``(config, num_items, num_users)``. Parameters and buffers are
    saved with the run; the constructor must give them their sizes, or hold them in `rediffuse.nn.SizedByData`.

    Class attributes:

    - ``name``: name in the registry and in messages.
    - ``Config``: class of its options.
    - ``trained_by_gradient``: False where `fit` does all the training.
    - ``phases``: phases of training, in order; each is trained with `training_options` of its own.
    - ``stochastic``: whether scores depend on the seed.
    - ``has_guidance``: whether a condition guides it, so that `Sampling.temperature` and ``guidance_scale`` act.
    - ``reads_synthetic``: whether synthetic interactions train it and remain in the histories that it scores.
    - ``reads_tables``: whether it learns from ``item_table`` or ``user_table``.
    - ``reads_content``: whether it learns from `TrainingData.content`.
    - ``needs_content``: whether it refuses data without item features.
    - ``item_rows``: tensors of its state that have a row for each item.
    - ``reads_times``: whether scores depend on the times of interactions, not only on their order.
    - ``holds_users``: whether its weights hold users: their vectors or their interactions. `rediffuse.push` publishes
      such weights only together with the histories.
    - ``on_cpu``: whether it computes with SciPy, so that answering moves it to no other device.

    The buffer ``fallback`` (num_items,) scores users without history: by recent popularity where interactions have
    times, otherwise by popularity. The buffer ``popularity`` (num_items,) holds the training interactions of each item.
    """

    name: ClassVar[str]
    Config: ClassVar[type[ModelConfig]] = ModelConfig
    trained_by_gradient: ClassVar[bool] = True
    phases: ClassVar[tuple[str, ...]] = ("fit",)
    stochastic: ClassVar[bool] = False
    has_guidance: ClassVar[bool] = False
    reads_synthetic: ClassVar[bool] = False
    reads_tables: ClassVar[bool] = False
    reads_content: ClassVar[bool] = False
    needs_content: ClassVar[bool] = False
    reads_times: ClassVar[bool] = False
    holds_users: ClassVar[bool] = True
    on_cpu: ClassVar[bool] = False
    popularity: Tensor
    fallback: Tensor

    def __init__(self, config: ModelConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__()
        self.config = config
        self.num_items, self.num_users = num_items, num_users
        self.register_buffer("popularity", torch.zeros(num_items))
        self.register_buffer("fallback", torch.zeros(num_items))

    @property
    def device(self) -> torch.device:
        """Where it computes, see `rediffuse.models.placement.place`."""
        return self.popularity.device

    @classmethod
    def reads_tables_with(cls, config: ModelConfig) -> bool:
        """Whether it learns from ``item_table`` or ``user_table`` with these options."""
        return cls.reads_tables

    @classmethod
    def reads_content_with(cls, config: ModelConfig) -> bool:
        """Whether it learns from `TrainingData.content` with these options."""
        return cls.reads_content and getattr(config, "item_features", True)

    @classmethod
    def summary(cls) -> str:
        """What the model is, in a sentence or two: the first paragraph of the docstring of the class."""
        paragraph, _, _ = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")
        return " ".join(paragraph.replace("``", "`").split())

    # --- training, in the order of the calls ---------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        """Refuse data without what the model learns from. Called before anything is written.

        Raises:
            DataError: says what is missing.
        """

    def fit(self, data: TrainingData) -> None:
        """Learn what has a closed form. Called first in every training, also when it is resumed.

        The base class stores the popularity of items, and what scores users without a history; an override calls it.
        """
        self.popularity.copy_(torch.from_numpy(np.asarray(data.popularity, dtype=np.float32)))
        self.fallback.copy_(self.popularity)
        if data.has_timestamps:
            recent = recent_popularity(data.train.without_synthetic(), self.num_items, FALLBACK_HALF_LIFE)
            self.fallback.copy_(torch.from_numpy(recent.astype(np.float32)))

    def update(self, data: TrainingData, earlier: Model, before: Histories, changed: NDArray[np.int64]) -> None:
        """Learn from new interactions, for models in closed form. The result is that of `fit`, to rounding.

        The base class fits again; models that are sums over users change the sums.

        Args:
            data: all interactions, old and new.
            earlier: the model that was fitted to the old ones; its users and items have the same numbers.
            before: the old interactions, with one row for each user of ``data``.
            changed: numbers of the users with new interactions.
        """
        self.fit(data)

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        """Prepare a phase: select what is trained. Called before each phase of `phases`.

        What it derives must be a function of the weights and the data alone, so that a resumed run derives it again.
        """

    def training_options(self, phase: str) -> ModelConfig:
        """Options of the training loop in a phase."""
        return self.config

    def chosen_by_ranking(self, phase: str) -> bool:
        """Whether a phase keeps the weights with the best validation metric; otherwise see `chosen_by_loss`."""
        return True

    def chosen_by_loss(self, phase: str) -> bool:
        """Whether a phase that is not chosen by ranking keeps the weights with the least training loss of an epoch,
        and stops where it has not fallen for ``patience`` validations; otherwise it keeps the last."""
        return False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for a torch optimiser; ``learning_rate_factor`` multiplies the learning rate of a group."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def batches(self, data: TrainingData, rng: np.random.Generator) -> Batches:
        """The batches of one epoch, in an order that depends on ``rng`` alone. Called at the start of each epoch."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """The scalar loss of a batch, times its ``rank_weight``."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Tensor:
        """Same as `loss`, under the name that distributed wrappers call."""
        return self.loss(batch)

    def prepare(self) -> None:
        """Derive from the weights what scoring needs. Called before scoring whenever the weights have changed."""

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Choose settings on validation data. Called once, after training, with the best weights.

        Args:
            validate: called, it gives the validation metric of the model as it is; `Validation.compare` measures many
                settings in one pass.

        Returns:
            The choices and what was measured; stored with the run and given to `resolve`.
        """
        return {}

    def resolve(self, resolved: dict[str, Any]) -> None:
        """Apply the choices of `calibrate`. Called after it, and whenever a run is loaded."""

    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        """How large what the model noises is beside the noise, one for each process. Called after training.

        Args:
            data: what the model has learned from.
        """
        return []

    @property
    def refits(self) -> bool | str:
        """What learns from the validation interactions too, after all choices: the model, a part of it (its name), or
        nothing."""
        return getattr(self.config, "refit", False)

    def refit(self, data: TrainingData) -> None:
        """Learn again what `refits` names. ``data`` has the validation interactions among those of training."""
        self.fit(data)

    def artifacts(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, pl.DataFrame]:
        """Extra files of the run: "name.parquet" -> table. Called after training."""
        return {}

    # --- scoring -------------------------------------------------------------------------------------------

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(B,) whether the model has learned something about each of ``users`` (B,), so that it can score them without
        a history. -1 is an unknown user."""
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
        """Score all items for a batch of users; higher is better.

        A user without history gets the scores ``fallback``, unless the model has user state for them. The scores of a
        row depend on the row and the seed alone, not on the rest of the batch.

        Args:
            histories: B rows of item numbers, oldest first.
            users: (B,) numbers of the users in training, -1 for others; None: all are others. Only models with user
                state read them.
            seed: seed of the noise of a stochastic model.
            sampling: all options of sampling, in place of ``seed``.

        Returns:
            (B, num_items) float32.
        """
        chosen = sampling or Sampling(seed)
        return self.score_with_fallback(histories, users, lambda rows, users: self.score_known(rows, users, chosen))

    def score_with_fallback(
        self,
        histories: Histories,
        users: NDArray[np.int64] | None,
        score: Callable[[Histories, NDArray[np.int64]], Tensor],
    ) -> Tensor:
        """Score known users with a function, and users without history or user state by ``fallback``.

        Args:
            histories, users: as for `score`.
            score: called with the histories and numbers of the known users; returns their scores.
        """
        users = np.full(len(histories), -1, dtype=np.int64) if users is None else users
        if not self.reads_synthetic:
            histories = histories.without_synthetic()
        known = np.flatnonzero((histories.lengths > 0) | self.has_user_state(users))
        if len(known) == len(histories):
            return score(histories, users)
        scores = self.fallback.repeat(len(histories), 1)
        if len(known):
            scores[torch.from_numpy(known).to(scores.device)] = score(histories.take(known), users[known])
        return scores

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        """(B, num_items) float32 scores of users with at least one item of history or with user state.

        Called in evaluation mode without gradients; arguments as for `score`.
        """
        raise NotImplementedError

    @property
    def max_sampling_steps(self) -> int | None:
        """Most denoising steps that `Sampling.sampling_steps` may ask for; None: it has no effect."""
        return None

    def network_passes(self, sampling: Sampling) -> int:
        """Passes through the network per scored batch."""
        return 1

    # --- new items -----------------------------------------------------------------------------------------

    item_rows: ClassVar[tuple[str, ...]] = ("popularity", "fallback")

    @property
    def scores_new_items(self) -> bool:
        """Whether items without an interaction can be added after training, see `with_items`."""
        return False

    def with_items(self, content: Content) -> Self:
        """This model with further items behind its own, of which it knows the content alone.

        Args:
            content: of the n new items, encoded as that of the items of training.

        Returns:
            A model of ``num_items + n`` items with the same scores for the first ``num_items``.
        """
        state = dict(self.state_dict())
        self.add_item_rows(state, "", len(content))
        model = type(self)(self.config, self.num_items + len(content), self.num_users)
        model.load_state_dict(state)
        model.eval()
        model.describe_added(content, self.num_items)
        return model

    def describe_added(self, content: Content, at: int) -> None:
        """Give items that were added, from number ``at`` on, their content. Implemented where `scores_new_items` is
        true."""
        raise NotImplementedError

    def add_item_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        """Add rows of zeros for ``added`` items to a state dict of this model, whose keys begin with ``prefix``.

        The base class adds them to the tensors that ``item_rows`` names.
        """
        for name in self.item_rows:
            if len(tensor := state[prefix + name]):  # otherwise it is not known yet
                state[prefix + name] = with_rows(tensor, self.num_items, added)

    # --- explanations, of models whose scores are sums over the history ------------------------------------

    explains_scores: ClassVar[bool] = False

    def contributions(
        self, histories: Histories, users: NDArray[np.int64], items: NDArray[np.int64]
    ) -> list[Contribution]:
        """The parts of the scores of ``items`` (n,) for one user; they add up to `score`.

        Implemented where ``explains_scores`` is true.

        Args:
            histories: one row.
            users: (1,) the number of the user, or -1.
            items: item numbers.
        """
        raise NotImplementedError

    def hops(self, histories: Histories, users: NDArray[np.int64]) -> list[tuple[str, Tensor]]:
        """How mass spreads from the history of one user over the items, hop by hop.

        Implemented where ``explains_scores`` is true.

        Returns:
            A label and the mass of every item (num_items,), from the history itself to the scores.
        """
        raise NotImplementedError

    @property
    def scores_are_logits(self) -> bool:
        """Whether the softmax of the scores is a distribution; otherwise they are amounts, such as mass or counts.

        It says how scores are put beside those of another model (`rediffuse.models.prior.log_scores`).
        """
        return self.trained_by_gradient

    # --- similar items -------------------------------------------------------------------------------------

    def item_neighbours(self, items: NDArray[np.int64]) -> Tensor:
        """(n, num_items) weights from each of ``items`` (n,) to all items: rows of the model's item-item matrix.

        Implemented by models that have one; 0 is no relation. Similar items of other models are those with the largest
        cosines of `map_vectors`.
        """
        raise NotImplementedError

    @property
    def has_item_neighbours(self) -> bool:
        """Whether `item_neighbours` is implemented."""
        return type(self).item_neighbours is not Model.item_neighbours

    # --- vectors, of models that rank by an inner product --------------------------------------------------

    @property
    def ranks_by_vectors(self) -> bool:
        """Whether inner products of `query_vectors` and `index_vectors`, if it has them, rank unseen items as `score`
        does. An index and an export need it."""
        return True

    def map_vectors(self) -> Tensor | None:
        """(num_items, d) item vectors whose cosines relate items, for similar items and the item map, or None."""
        return self.index_vectors()

    def index_vectors(self) -> Tensor | None:
        """(num_items, d) item vectors whose inner products with `query_vectors` rank the items, or None."""
        return None

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        """(B, d) vectors of known users; arguments as for `score_known`.

        Their inner products with `index_vectors` are the scores, except for what `scores_by_vectors` adds to items of
        the history.
        """
        raise NotImplementedError

    def scores_by_vectors(self, queries: Tensor, items: Tensor, histories: Histories) -> Tensor:
        """(B, num_items) scores from the `query_vectors` (B, d) of ``histories`` and from `index_vectors`."""
        return queries @ items.T
