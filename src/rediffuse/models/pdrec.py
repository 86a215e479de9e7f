"""PDRec: plug-in diffusion for sequential recommendation (Ma et al., AAAI 2024, arXiv 2401.02913).

A TI-DiffRec is trained first; what it thinks of all items becomes three signals for the training of a sequence model
(`rediffuse.models.signals`). Answers come from the sequence model alone, at no further cost. With c = cosine over a
temperature, w the weights of events, s the state after the whole history and N safe and random negatives (eq. 5-13):

    mean over events of w BCE(c, 1)  +  positive_weight mean of BCE(c(s, liked items), 1)
                                     +  mean over events and negatives of BCE(c, 0)

With ``loss=softmax`` the same weights and liked items go into the cross entropy over the whole catalogue, in which
every item is a negative already.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import polars as pl
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from rediffuse import distributed
from rediffuse.batching.negatives import draw_negatives, interaction_keys
from rediffuse.batching.rows import RowBatch, RowBatches
from rediffuse.batching.sequences import SequenceBatch, SequenceBatches, rank_rows
from rediffuse.config import ModelConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.models.backbone import backbone_class, backbone_config
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.composite import Composite
from rediffuse.models.diffrec import TDiffRec, TDiffRecConfig
from rediffuse.models.next_item_loss import next_item_loss
from rediffuse.models.sequence import SequenceConfig, SequenceModel
from rediffuse.models.signals import Signals, derive_signals

BACKBONES = ("bert4rec", "diffurec", "gru4rec", "sasrec")
# What the backbone's options are not asked for, because PDRec's own are.
_SHARED = (*ModelConfig.model_fields, "loss")


class PDRecConfig(ModelConfig):
    """Options of the loop are those of the backbone's training; TI-DiffRec has its own under ``diffusion``."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper:douban-book": {
            **{"backbone": "gru4rec", "learning_rate": 0.01, "rank_share": 0.3},
            "backbone_options": {"embedding_size": 64, "dropout": 0.2, "temperature": 0.1, "max_length": 200},
            "diffusion": TDiffRecConfig.presets["paper:douban-book"],
        },
        "paper:toys": {
            **{"backbone": "gru4rec", "learning_rate": 0.005, "rank_share": 0.1, "scale": 2.0},
            **{"band_from": 50.0, "candidates": 50, "liked": 5, "positive_weight": 0.3},
            "backbone_options": {"embedding_size": 64, "dropout": 0.2, "temperature": 0.2, "max_length": 200},
            "diffusion": TDiffRecConfig.presets["paper:toys"],
        },
    }
    search: ClassVar = {
        "rank_share": Range(0.0, 1.0),
        "scale": Range(0.5, 4.0, log=True),
        "positive_weight": Range(0.003, 0.3, log=True),
        "liked": (1, 5, 10),
        "band_from": (50.0, 80.0, 90.0),
    }

    backbone: str = Field("sasrec", description="The sequence model that is trained with the signals, and answers.")
    backbone_options: dict[str, Any] = Field({}, description="Its own options, e.g. backbone_options.dropout=0.2.")
    diffusion: dict[str, Any] = Field({}, description="Options of the tdiffrec, e.g. diffusion.epochs=50.")
    loss: Literal["bce", "softmax"] = Field("bce", description="bce as in the paper; softmax takes no nns.")
    hbr: bool = Field(True, description="Historical behaviour reweighting.")
    dpa: bool = Field(True, description="Diffusion-based positive augmentation.")
    nns: bool = Field(True, description="Noise-free negative sampling.")
    rank_share: float = Field(0.3, ge=0, le=1, description="Of an event's weight, the share that goes by rank.")
    largest: float = Field(3.0, gt=0, description="Upper bound of an event's weight, before the scale.")
    scale: float = Field(4.0, gt=0, description="Factor of all events' weights.")
    band_from: float = Field(80.0, ge=0, lt=100, description="Safe negatives stand from here in the ranking, in %.")
    band_to: float = Field(99.0, gt=0, le=100, description="And up to here.")
    candidates: int = Field(100, ge=1, description="Best items, of which the backbone takes some as liked.")
    liked: int = Field(1, ge=1, description="How many it takes: those that it ranks highest itself.")
    positive_weight: float = Field(0.01, ge=0, description="Weight of the loss at liked items.")
    seen_positives: bool = Field(False, description="Liked items may be those of the history, as released.")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.band_from >= self.band_to:
            raise ValueError(f"band_from={self.band_from:g} is not below band_to={self.band_to:g}")
        if self.liked > self.candidates:
            raise ValueError(f"liked={self.liked} items cannot be chosen out of candidates={self.candidates}")
        if self.nns and self.loss == "softmax":
            raise ValueError("with loss=softmax every item is a negative already; set nns=false")
        self.diffusion_config()
        self.backbone_config()
        return self

    def diffusion_config(self) -> TDiffRecConfig:
        """Options of the first phase; unless they say otherwise, it weighs by time and is selected as the backbone.

        Raises:
            ConfigError: they are not those of a tdiffrec.
        """
        usual = {"weighting": "interval", "weight_min": 0.3, "metric": self.metric, "precision": self.precision}
        return TDiffRecConfig.build(None, usual | self.diffusion)

    def backbone_class(self) -> type[SequenceModel]:
        """Raises:
        ConfigError: the backbone is no sequence model.
        """
        return backbone_class("PDRec", self.backbone, BACKBONES)

    def backbone_config(self) -> SequenceConfig:
        """Options of the backbone, with those of the loop from here.

        Raises:
            ConfigError: ``backbone_options`` are not its own.
        """
        shared = {option: getattr(self, option) for option in _SHARED}
        return backbone_config("PDRec", self.backbone_class(), self.backbone_options, shared)


class PDRec(Composite):
    """A sequence model that was trained with the advice of a TI-DiffRec."""

    name = "pdrec"
    Config = PDRecConfig
    config: PDRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: PDRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.diffusion = TDiffRec(config.diffusion_config(), num_items, num_users) if self.signalled else None
        self.backbone = config.backbone_class()(config.backbone_config(), num_items, num_users)
        self.phase = "backbone"
        self.signals: Signals | None = None
        self.events = self.train_events = Histories.from_lists([])
        self.event_weights = self.owners = self.positives = self.negatives = torch.empty(0)

    @property
    def signalled(self) -> bool:
        return self.config.hbr or self.config.dpa or self.config.nns

    @property
    def phases(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("diffusion", "backbone") if self.signalled else ("backbone",)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.backbone.stochastic

    @property
    def active_model(self) -> Model:
        """What is trained now, and answers."""
        part = self.diffusion if self.phase == "diffusion" else self.backbone
        assert part is not None
        return part

    # --- phases --------------------------------------------------------------------------------------------

    def training_options(self, phase: str) -> ModelConfig:
        return self.diffusion.config if phase == "diffusion" and self.diffusion is not None else self.config

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        for part in (self.diffusion, self.backbone):
            if part is not None:
                part.fit(data)

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        self.phase = phase
        for part in (self.diffusion, self.backbone):
            if part is not None:
                part.requires_grad_(part is self.active_model)
        if phase == "backbone":
            self._take_signals(data)

    def _take_signals(self, data: TrainingData) -> None:
        """Derive the signals. Nothing is drawn, so that a run which is resumed has the same."""
        config = self.config
        self.train_events = data.train
        self.events = open_ended(data.train, self.num_items) if config.dpa else data.train
        known = self.events.items < self.num_items
        weights = torch.ones(len(known))
        if self.diffusion is not None:
            self.diffusion.eval()
            self.diffusion.prepare()
            self.signals = signals = derive_signals(
                self.diffusion.score,
                data.train,
                self.num_items,
                rank_share=config.rank_share,
                largest=config.largest,
                scale=config.scale,
                band=(config.band_from, config.band_to),
                candidates=config.candidates,
                seen_positives=config.seen_positives,
            )
            self.positives = torch.from_numpy(signals.positives).to(self.popularity.device)
            if config.hbr:
                # A first event is nobody's target but BERT4Rec's: it weighs what events weigh on average.
                weights[torch.from_numpy(known)] = torch.from_numpy(signals.weights).nan_to_num(config.scale)
        self.event_weights = weights.to(self.popularity.device)
        self.owners = torch.from_numpy(self.events.owners).to(self.popularity.device)

    def artifacts(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, pl.DataFrame]:
        if self.signals is None:
            return {}
        return {"signals.parquet": self.signals.to_frame(self.train_events, user_ids, item_ids)}

    # --- learning ------------------------------------------------------------------------------------------

    def batches(self, data: TrainingData, rng: np.random.Generator) -> SequenceBatches | RowBatches:
        if self.phase == "diffusion":
            return self.active_model.batches(data, rng)  # type: ignore[return-value]
        if self.config.loss == "bce":
            owners = self.events.owners
            drawn = [draw_negatives(owners, interaction_keys(data.train, self.num_items), self.num_items, rng)]
            if self.config.nns and self.signals is not None:
                drawn.append(self.signals.draw(owners, self.num_items, rng))
            self.negatives = torch.from_numpy(np.stack(drawn, axis=1)).to(self.popularity.device)
        return self.backbone.batches(dataclasses.replace(data, train=self.events), rng)

    def loss(self, batch: RowBatch | SequenceBatch) -> Tensor:
        if isinstance(batch, RowBatch):
            return self.active_model.loss(batch)
        batch = self.backbone.training_batch(batch)
        encoded = self.backbone.encode(batch)
        hidden, importance = encoded.vectors, encoded.weights
        known = batch.targets < self.num_items
        importance = torch.ones_like(batch.targets, dtype=torch.float32) if importance is None else importance
        weights = self.event_weights[batch.interactions]
        per_target = torch.zeros(len(hidden), device=hidden.device)
        loss, per_target[known] = self.losses(hidden[known], _only(batch, known), importance[known], weights[known])
        loss = loss * _share(int(known.sum()), batch)
        if self.config.dpa:
            # What follows the history is not known; the diffusion model has an opinion.
            ends, at_ends = hidden[~known], _only(batch, ~known)
            rows, items = self.liked(ends, self.owners[at_ends.interactions])
            share = _share(len(rows), batch)
            if len(rows):
                at_liked = dataclasses.replace(_only(at_ends, rows), targets=items)
                liking, per_liked = self.losses(ends[rows], at_liked, importance[~known][rows])
                loss = loss + self.config.positive_weight * share * liking
                total = torch.zeros(len(ends), device=hidden.device).index_add(0, rows, per_liked)
                per_target[~known] = total / torch.bincount(rows, minlength=len(ends)).clamp(min=1)
        if encoded.timesteps is not None:
            counted = rank_rows(batch.rank_weight)
            self.backbone.update_timestep_sampler(encoded.timesteps[counted], per_target[counted])
        return loss

    def losses(
        self, hidden: Tensor, batch: SequenceBatch, importance: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of states (n, d) at the batch's targets, and the (n,) losses, detached.

        Args:
            importance: (n,) of the rows.
            weights: (n,) of events, which also have negatives; None: the targets are liked items.
        """
        if self.config.loss == "softmax":
            return next_item_loss(self.backbone, hidden, batch, importance if weights is None else weights * importance)
        hidden = self.backbone.metric_space(hidden)
        table = self.backbone.metric_space(self.backbone.catalogue())
        positive = F.softplus(-(hidden * table[batch.targets]).sum(-1).float())
        count = max(len(positive), 1)  # a batch of people with one event each has open ends alone
        if weights is None:
            return (importance * positive).sum() / count, positive.detach()
        negatives = self.negatives[batch.interactions]
        logits = torch.einsum("nd,nkd->nk", hidden, table[negatives.clamp(min=0)].to(hidden.dtype)).float()
        against = F.softplus(logits).masked_fill(negatives < 0, 0.0).mean(1)
        return (importance * (weights * positive + against)).sum() / count, (positive + against).detach()

    @torch.no_grad()
    def liked(self, ends: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of ``ends`` (m, d) and the items taken as liked there: of each person's candidates, those that the
        backbone itself ranks highest."""
        candidates = self.positives[users].long()
        table = self.backbone.metric_space(self.backbone.catalogue())
        logits = torch.einsum("md,mcd->mc", self.backbone.metric_space(ends).float(), table[candidates.clamp(min=0)])
        logits = logits.masked_fill(candidates < 0, -torch.inf)
        best = logits.topk(min(self.config.liked, logits.shape[1]), dim=1)
        rows, places = torch.nonzero(best.values > -torch.inf, as_tuple=True)
        return rows, candidates[rows, best.indices[rows, places]]

    # --- answering -----------------------------------------------------------------------------------------

    def calibrate(self, validate: Callable[[], float]) -> dict[str, Any]:
        return self.backbone.calibrate(validate)

    def resolve(self, resolved: dict[str, Any]) -> None:
        self.backbone.resolve(resolved)


def open_ended(histories: Histories, num_items: int) -> Histories:
    """Every history of at least one event, followed by an event whose item, ``num_items``, is not known.

    As a target it stands for whatever comes next; it is never an input, being last.
    """
    lengths = histories.lengths
    longer = lengths + (lengths > 0)
    offsets = np.concatenate(([0], np.cumsum(longer)))
    items = np.full(offsets[-1], num_items, dtype=np.int32)
    items[np.arange(len(histories.items)) + np.repeat(offsets[:-1] - histories.offsets[:-1], lengths)] = histories.items
    return Histories(offsets, items)


def _share(count: int, batch: SequenceBatch) -> float:
    """The factor that makes an average over ranks of means over ``count`` the mean over all that they have. Collective.

    Of one batch a rank may have few known targets and many liked items: each mean has a factor of its own.
    """
    count = count if batch.rank_weight else 0
    return count / (distributed.all_reduce_mean(count) or 1.0)


def _only(batch: SequenceBatch, chosen: Tensor) -> SequenceBatch:
    """The batch with some of its targets, by mask or number."""
    fields = ("rows", "positions", "targets", "interactions")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[chosen] for name in fields})
