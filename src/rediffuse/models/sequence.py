"""The base of next-item models: item table, batches of sequences, training loss, and ranking by inner product."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from rediffuse.batching.sequences import SequenceBatch, SequenceBatches, pad_right, rank_rows
from rediffuse.config import ContentConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.losses import Draws
from rediffuse.losses.softmax import Biased
from rediffuse.models.base import TrainingData
from rediffuse.models.content import ContentModel
from rediffuse.models.history_noise import HistoryNoise
from rediffuse.models.next_item_loss import draw_negatives, negative_draws, next_item_loss
from rediffuse.models.sampling import Sampling
from rediffuse.nn.item_table import item_table

# The repeat bias is this times a parameter, so Adam moves it this much faster than a weight: its values are large, and
# those of an item table are not.
REPEAT_RATE = 10.0
# eSASRec (Tikhonovich et al., RecSys 2025, arXiv 2508.06450) with the options that its authors chose for Amazon's data.
# The feed-forward layers of our blocks are as wide as theirs on Beauty (4 d); they chose 2 d for Sports and d for Toys.
ESASREC: dict[str, Any] = {
    "block": "ligr",
    "blocks": 1,
    "heads": 1,
    "dropout": 0.2,
    "embedding_size": 64,
    "max_length": 50,
    "loss": "uniform_softmax",
    "negatives": 256,
    "temperature": None,
    "repeat_bias": False,
    "learning_rate": 1e-3,
    "adam_beta2": 0.98,
    "epochs": 200,
    "patience": 50,
}
# Rows that pass through the network together when scoring.
SCORE_ROWS = 64


class SequenceConfig(ContentConfig):
    """Options of a model that reads a history and ranks the next item by an inner product."""

    search: ClassVar[dict[str, Range | tuple[Any, ...]]] = {
        "learning_rate": Range(3e-4, 5e-3, log=True),
        "weight_decay": (0.0, 0.01, 0.1),
        "embedding_size": (64, 128, 256),
        "temperature": (0.05, 0.07, 0.1),
    }

    embedding_size: int = Field(128, ge=1)
    max_length: int = Field(50, ge=1, description="Most recent interactions that are read.")
    loss: Literal["softmax", "sampled_softmax", "uniform_softmax", "in_batch", "bce", "gbce", "sce"] = Field(
        "softmax", description="softmax is over the whole catalogue, the others over some of it (docs/scaling.md)."
    )
    negatives: int | None = Field(
        None,
        ge=1,
        description="None: 1024 per batch for sampled_softmax; per target, 256 for uniform_softmax and gbce, 1 for "
        "bce; 256 per bucket for sce.",
    )
    item_optimizer: Literal["adamw", "rowwise_adagrad"] = Field(
        "adamw",
        description="rowwise_adagrad updates only the rows of the item table that a batch has read; not for softmax, "
        "which reads all.",
    )
    repeat_bias: bool = Field(
        True,
        description="Learn one number that is added to the logit of every item already in the window; only the loss "
        "softmax does.",
    )
    history_noise: float = Field(
        0.0, ge=0, description="Time for which the items of training histories diffuse along the item graph; 0: none."
    )
    noise_graph: Literal["transitions", "uniform"] = Field(
        "transitions", description="The graph of history_noise; uniform: every hop leads to any item. The control."
    )
    synthetic_targets: bool = Field(False, description="Synthetic interactions are loss targets too.")
    temperature: float | None = Field(
        0.07, gt=0, description="Rank by cosine divided by this; None ranks by the inner product."
    )

    @model_validator(mode="after")
    def _residual_fits_the_loss(self) -> Self:
        if self.prior == "residual" and self.loss != "softmax":
            raise ValueError(
                f"prior=residual is for loss=softmax, and loss is {self.loss}; take prior=head, or loss=softmax"
            )
        return self

    @model_validator(mode="after")
    def _item_optimizer_fits_clipping(self) -> Self:
        if self.item_optimizer != "adamw" and self.clip_norm is not None:
            raise ConfigError(
                f"clip_norm={self.clip_norm:g} does not go with item_optimizer={self.item_optimizer}, whose gradients "
                "are sparse: torch has no norm of those.",
                "Set clip_norm=null, or item_optimizer=adamw.",
            )
        return self

    @model_validator(mode="after")
    def _item_optimizer_fits_the_loss(self) -> Self:
        if self.item_optimizer != "adamw" and self.loss == "softmax":
            raise ValueError(
                f"item_optimizer={self.item_optimizer} is for losses that read few rows of the item table, and "
                f"loss={self.loss} reads all; take another loss, for example sampled_softmax or sce, or adamw"
            )
        return self


@dataclass(frozen=True)
class Encoded:
    """What `SequenceModel.encode` gives for the n targets of a batch.

    Attributes:
        vectors: (n, d) predictions in item space: an item's logit is its inner product with the vector.
        weights: (n,) importance weights of the loss; None for ones.
        timesteps: (n,) int64 timesteps of a diffusion model; None without diffusion.
    """

    vectors: Tensor
    weights: Tensor | None = None
    timesteps: Tensor | None = None


class SequenceModel(ContentModel):
    """A model that turns a history into a vector in item space; items are ranked by their inner product with it.

    Subclasses implement `encode` (training) and `represent` (scoring).

    Attributes:
        item_embedding: (num_items + 1, d) item table; the last row is the padding item.
        every_position: True: a history trains all its positions at once; False: one target per row.
        buckets_by_length: whether the histories of a training batch have similar lengths.
        repeat: the repeat bias, divided by `REPEAT_RATE`; None without it.
        draws: how negatives are drawn, for losses that draw them by popularity.
        noise: of the training histories; None before `fit`, and without `history_noise`.
    """

    Config = SequenceConfig
    config: SequenceConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    reads_synthetic = True
    holds_users = False
    learns_residual = True
    every_position = True
    buckets_by_length = True
    draws: Draws

    def __init__(self, config: SequenceConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        sparse = config.item_optimizer != "adamw"
        self.item_embedding = item_table(num_items + 1, config.embedding_size, sparse=sparse)
        self.repeat = nn.Parameter(torch.zeros(())) if config.repeat_bias else None
        self.noise: HistoryNoise | None = None

    # --- training ------------------------------------------------------------------------------------------

    def loss(self, batch: SequenceBatch) -> Tensor:
        batch = self.training_batch(batch)
        # The repeat bias and the prior are for what the user interacted with; the network alone reads the noise.
        noised = self.noised(batch)
        negatives = draw_negatives(self, len(batch.targets), batch.targets.device)
        # One exchange between processes for all that the step reads, where the table is divided among them.
        self.item_embedding.fetch(noised.items, batch.targets, *(() if negatives is None else (negatives,)))
        encoded = self.encode(noised)
        loss, per_target = next_item_loss(self, encoded.vectors, batch, negatives, encoded.weights)
        if encoded.timesteps is not None:
            counted = rank_rows(batch.rank_weight)
            self.update_timestep_sampler(encoded.timesteps[counted], per_target[counted])
        return loss * batch.rank_weight

    def training_batch(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with the targets of the model, where these are not the items that follow each position."""
        return batch

    @property
    def noise_time(self) -> float:
        """Time for which the items of training histories diffuse; 0: not at all."""
        return self.config.history_noise

    def noised(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with its histories after `history_noise`."""
        return batch if self.noise is None else dataclasses.replace(batch, items=self.noise.move(batch.items))

    def encode(self, batch: SequenceBatch) -> Encoded:
        """One vector per target of the batch."""
        raise NotImplementedError

    def update_timestep_sampler(self, timesteps: Tensor, losses: Tensor) -> None:
        """Take the losses (n,) at the timesteps (n,) that `encode` drew; NaN where a target has no loss."""

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        if self.noise_time:
            uniform, device = self.config.noise_graph == "uniform", self.item_embedding.device
            self.noise = HistoryNoise(data.train, self.num_items, self.noise_time, uniform, device)
        draws = negative_draws(self.config.loss, self.popularity)
        if draws is not None:
            self.draws = draws

    def parameter_groups(self) -> list[dict[str, Any]]:
        if not self.item_embedding.sparse:
            return super().parameter_groups()
        table = self.item_embedding.weight
        other_parameters = [p for p in self.parameters() if p.requires_grad and p is not table]
        return [{"params": other_parameters}, {"params": [table], "rowwise": True}]

    def batches(self, data: TrainingData, rng: np.random.Generator) -> SequenceBatches:
        return SequenceBatches(
            data.train,
            max_length=self.config.max_length,
            batch_size=self.config.batch_size,
            pad=self.pad,
            every_position=self.every_position,
            rng=rng,
            synthetic_targets=self.config.synthetic_targets,
            bucketed=self.buckets_by_length,
        )

    # --- items ---------------------------------------------------------------------------------------------

    @property
    def pad(self) -> int:
        """Number of the padding item."""
        return self.num_items

    def catalogue(self) -> Tensor:
        """(num_items, d) item table without the padding row."""
        return self.item_embedding.all()[: self.num_items]

    def classes(self) -> Tensor:
        """(classes, d) rows of the item table that the loss softmax is over."""
        return self.catalogue()

    def metric_space(self, x: Tensor) -> Tensor:
        """Vectors (..., d) scaled so that their inner products are logits."""
        if self.config.temperature is None:
            return x
        return nn.functional.normalize(x, dim=-1) * self.config.temperature**-0.5

    def item_vectors(self, items: Tensor) -> Tensor:
        """(..., d) vectors of items (...) in metric space."""
        return self.metric_space(self.item_embedding(items))

    @torch.no_grad()
    def place_items(self, items: Tensor, vectors: Tensor) -> None:
        table = self.item_embedding.weight
        if self.config.temperature is not None:  # lengths do not rank, but histories are read with them
            length = table[: self.num_items][self.popularity > 0].norm(dim=1).mean()
            vectors = nn.functional.normalize(vectors, dim=-1) * length
        table[items] = vectors

    # --- biases of logits ----------------------------------------------------------------------------------

    def biased(self, batch: SequenceBatch) -> Biased | None:
        """What is added to logits of a batch, in the loss softmax: the repeat bias, and the residual of the prior.

        No pair of a target and an item has both: the first is for items of the history, the second for others.
        """
        repeat = self.repeat_bias(batch)
        if self.prior is None or self.prior.residual is None:
            return repeat
        residual = self.prior.residual
        targets, items, values = residual.training_values(self.prior.graph, batch.interactions)
        bias = residual.beta * values
        if repeat is None:
            return targets, items, bias
        rows, seen, same = repeat
        return torch.cat((rows, targets)), torch.cat((seen, items)), torch.cat((same.expand(len(rows)), bias))

    def repeat_bias(self, batch: SequenceBatch) -> Biased | None:
        """The bias on the logits of items that a target's window already holds: (targets, items, bias).

        Each pair of a target and an item occurs once. Synthetic interactions do not count as repeats.
        """
        if self.repeat is None:
            return None
        counts = self.visible(batch)
        # One element per target and visible column of its row.
        target = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
        column = torch.arange(len(target), device=target.device) - (counts.cumsum(0) - counts)[target]
        items = batch.items[batch.rows[target], column]
        real = items < self.num_items
        if batch.synthetic is not None:
            real &= column >= batch.synthetic[batch.rows[target]]
        pairs = torch.unique(target[real] * self.num_items + items[real])
        return pairs // self.num_items, pairs % self.num_items, REPEAT_RATE * self.repeat

    def visible(self, batch: SequenceBatch) -> Tensor:
        """(n,) how many items of its row each target may see, from the first."""
        return batch.positions + 1

    def scores_by_vectors(self, queries: Tensor, items: Tensor, histories: Histories) -> Tensor:
        scores = queries @ items.T
        if self.repeat is not None:
            window = pad_right(histories.without_synthetic(), self.config.max_length, self.pad)[0].to(scores.device)
            row, column = torch.nonzero(window < self.num_items, as_tuple=True)
            item = window[row, column]
            # All scores are read before any is written, so an item that occurs twice in the window is biased once.
            scores[row, item] = scores[row, item] + REPEAT_RATE * self.repeat
        if self.prior is not None and (residual := self.prior.residual) is not None:
            own = histories.without_synthetic()
            row, item, values = residual.values(self.prior.graph, own, scores.device)
            scores[row, item] += residual.beta * values
        return scores

    # --- scoring -------------------------------------------------------------------------------------------

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        """(B, d) predicted vector of the next item after each history: items (B, L), padded on the right, of
        ``lengths`` (B,)."""
        raise NotImplementedError

    def read_vectors(self, x: Tensor) -> Tensor:
        """As `represent`, from histories of item vectors (B, L, d); differentiable. Only guidance needs it."""
        raise NotImplementedError

    def index_vectors(self) -> Tensor:
        return self.metric_space(self.catalogue())

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        device = self.item_embedding.device
        hidden = torch.empty(len(histories), self.config.embedding_size, device=device)
        items, lengths = pad_right(histories, self.config.max_length, self.pad)
        items, lengths = items.to(device), lengths.to(device)
        # Rows of similar length pass through the network together, to save padding.
        for rows in torch.argsort(lengths).split(SCORE_ROWS):
            width = int(lengths[rows].max())
            hidden[rows] = self.represent(items[rows, :width], lengths[rows], sampling).float()
        return self.metric_space(hidden)

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.scores_by_vectors(self.query_vectors(histories, users, sampling), self.index_vectors(), histories)
