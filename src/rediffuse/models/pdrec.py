"""PDRec: plug-in diffusion for sequential recommendation (Ma et al., AAAI 2024, arXiv 2401.02913).

A TI-DiffRec is trained first. Its ranking of all items gives three signals for the training of a sequence model, the
backbone (`rediffuse.models.signals`). The backbone alone recommends, at no further cost. With c the cosine over a
temperature, w the weights of interactions and s the state after the whole history, the loss is (eq. 5-13)

    mean over interactions of w BCE(c, 1)  +  positive_weight mean of BCE(c(s, liked items), 1)
                                           +  mean over interactions and their negatives of BCE(c, 0)

With ``loss=softmax`` the weights and liked items go into the cross entropy over the whole catalogue, in which every
other item is a negative already.
"""

from __future__ import annotations

import dataclasses
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
from rediffuse.config import ModelConfig, NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.diffusion import NoiseLevels
from rediffuse.models.backbone import backbone_class, backbone_config, refuse_prior
from rediffuse.models.base import Model, TrainingData, Validation
from rediffuse.models.baselines.gru4rec import GRU4Rec
from rediffuse.models.composite import Composite
from rediffuse.models.diffrec import FALLS_BY_A_HUNDREDTH, TI_DIFFREC, TDiffRec, TDiffRecConfig
from rediffuse.models.next_item_loss import next_item_loss
from rediffuse.models.pdrec_released import PaddedGRU, PaddedTDiffRec
from rediffuse.models.sequence import SequenceConfig, SequenceModel
from rediffuse.models.signals import Signals, derive_signals

BACKBONES = ("bert4rec", "diffurec", "gru4rec", "sasrec")
# Options of the backbone that are PDRec's own.
_SHARED = (*ModelConfig.model_fields, "loss")
# Released options that are the same for all data sets.
_GRU4REC = {"embedding_size": 64, "dropout": 0.2, "max_length": 200}
_TRAINING = FALLS_BY_A_HUNDREDTH | {"epochs": 1000, "adam_beta2": 0.98}
_RELEASED = _TRAINING | {"backbone": "gru4rec", "backbone_options": _GRU4REC, "diffusion": TI_DIFFREC}


class PDRecConfig(NeuralConfig):
    """Options of the training loop are those of the backbone's training; TI-DiffRec's are under ``diffusion``."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _RELEASED,
        "released": _RELEASED
        | {"fidelity": "released", "precision": "fp32", "batch_size": 128}
        | {"backbone_options": _GRU4REC | {"dropout": 0.0, "temperature": 0.2, "item_features": False}},
        "paper:douban-book": _TRAINING
        | {
            **{"backbone": "gru4rec", "learning_rate": 0.01, "rank_share": 0.3},
            "backbone_options": _GRU4REC | {"temperature": 0.1},
            "diffusion": TDiffRecConfig.presets["paper:douban-book"],
        },
        "paper:toys": _TRAINING
        | {
            **{"backbone": "gru4rec", "learning_rate": 0.005, "rank_share": 0.1, "scale": 2.0},
            **{"band_from": 50.0, "candidates": 50, "liked": 5, "positive_weight": 0.3},
            "backbone_options": _GRU4REC | {"temperature": 0.2},
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

    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: liked items may be items of the history, weights of interactions are relative to the "
        "padding's too, the backbone begins with Xavier's normal weights, and TI-DiffRec and gru4rec are trained as in "
        "the authors' program, on drawn users: batch_size counts these. Also the fidelity of TI-DiffRec unless "
        "diffusion.fidelity is set; a backbone has its own, backbone_options.fidelity.",
    )
    backbone: str = Field("sasrec", description="The sequence model that is trained with the signals, and recommends.")
    backbone_options: dict[str, Any] = Field(
        {}, description="Options of the backbone, e.g. backbone_options.dropout=0.2."
    )
    diffusion: dict[str, Any] = Field({}, description="Options of the TI-DiffRec, e.g. diffusion.epochs=50.")
    loss: Literal["bce", "softmax"] = Field("bce", description="bce as in the paper; softmax needs nns=false.")
    hbr: bool = Field(True, description="Historical behaviour reweighting.")
    dpa: bool = Field(True, description="Diffusion-based positive augmentation.")
    nns: bool = Field(True, description="Noise-free negative sampling.")
    rank_share: float = Field(
        0.3, ge=0, le=1, description="Share of an interaction's weight that depends on its rank among the user's."
    )
    largest: float = Field(3.0, gt=0, description="Upper bound of an interaction's weight, before the scale.")
    scale: float = Field(4.0, gt=0, description="Factor that all interaction weights are multiplied by.")
    band_from: float = Field(
        80.0, ge=0, lt=100, description="Start of the band of safe negatives in the ranking, in %."
    )
    band_to: float = Field(99.0, gt=0, le=100, description="End of that band, in %.")
    candidates: int = Field(100, ge=1, description="Best items, from which the backbone selects the liked ones.")
    liked: int = Field(1, ge=1, description="Number of liked items: the candidates that the backbone ranks highest.")
    positive_weight: float = Field(0.01, ge=0, description="Weight of the loss at liked items.")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.band_from >= self.band_to:
            raise ValueError(f"band_from={self.band_from:g} is not below band_to={self.band_to:g}")
        if self.liked > self.candidates:
            raise ValueError(f"liked={self.liked} is more than candidates={self.candidates}")
        if self.nns and self.loss == "softmax":
            raise ValueError("with loss=softmax every other item is a negative already; set nns=false")
        self.diffusion_config()
        self.backbone_config()
        return self

    def diffusion_config(self) -> TDiffRecConfig:
        """The options of TI-DiffRec: ``diffusion``, on top of weighting by time and PDRec's own values.

        Raises:
            ConfigError: ``diffusion`` has options that tdiffrec does not have, or a prior.
        """
        defaults = {"weighting": "interval", "weight_min": 0.3, "fidelity": self.fidelity}
        defaults |= {"metric": self.metric, "precision": self.precision}
        config = TDiffRecConfig.build(None, defaults | self.diffusion)
        refuse_prior("PDRec", "diffusion", config)
        return config

    def backbone_class(self) -> type[SequenceModel]:
        """The class of the backbone.

        Raises:
            ConfigError: ``backbone`` is not one of `BACKBONES`.
        """
        kind = backbone_class("PDRec", self.backbone, BACKBONES)
        return PaddedGRU if self.fidelity == "released" and kind is GRU4Rec else kind

    def backbone_config(self) -> SequenceConfig:
        """The options of the backbone: its own, and PDRec's options of the loop and the loss.

        Raises:
            ConfigError: ``backbone_options`` has options that the backbone does not have, or that are PDRec's own.
        """
        shared = {option: getattr(self, option) for option in _SHARED}
        return backbone_config("PDRec", self.backbone_class(), self.backbone_options, shared)


class PDRec(Composite):
    """A sequence model whose training is reweighted and extended by what a TI-DiffRec expects of each user."""

    name = "pdrec"
    reads_content = True  # the backbone does
    Config = PDRecConfig
    holds_users = False
    config: PDRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: PDRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        released = config.fidelity == "released"
        kind = PaddedTDiffRec if released else TDiffRec
        self.diffusion = kind(config.diffusion_config(), num_items, num_users) if self.uses_signals else None
        self.backbone = config.backbone_class()(config.backbone_config(), num_items, num_users)
        if released:  # every matrix, those of items and of recurrent layers too
            for weight in self.backbone.parameters():
                if weight.dim() > 1:
                    torch.nn.init.xavier_normal_(weight)
        self.phase = "backbone"
        self.signals: Signals | None = None
        # For the training of the backbone: its histories are open-ended with dpa. Tensors are aligned with them or with
        # users, and are filled by `begin_phase` and `batches`.
        self.train_histories = self.backbone_histories = Histories.from_lists([])
        self.interaction_weights = self.owners = self.positives = self.negatives = torch.empty(0)

    @property
    def uses_signals(self) -> bool:
        return self.config.hbr or self.config.dpa or self.config.nns

    @property
    def phases(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("diffusion", "backbone") if self.uses_signals else ("backbone",)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.backbone.stochastic

    @property
    def active_model(self) -> Model:
        """The model that this phase trains."""
        model = self.diffusion if self.phase == "diffusion" else self.backbone
        assert model is not None
        return model

    # --- phases --------------------------------------------------------------------------------------------

    def training_options(self, phase: str) -> ModelConfig:
        return self.diffusion.config if phase == "diffusion" and self.diffusion is not None else self.config

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        for model in (self.diffusion, self.backbone):
            if model is not None:
                model.fit(data)

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        self.phase = phase
        for model in (self.diffusion, self.backbone):
            if model is not None:
                model.requires_grad_(model is self.active_model)
        if phase == "backbone":
            self._derive_signals(data)

    def _derive_signals(self, data: TrainingData) -> None:
        """Derive the signals. Nothing is drawn, so a resumed run has the same ones."""
        config = self.config
        self.train_histories = data.train
        self.backbone_histories = open_ended(data.train, self.num_items) if config.dpa else data.train
        known = self.backbone_histories.items < self.num_items
        weights = torch.ones(len(known))
        if self.diffusion is not None:
            self.diffusion.eval()
            self.diffusion.prepare()
            released = config.fidelity == "released"
            diffusion = self.diffusion
            self.signals = signals = derive_signals(
                diffusion.score_with_padding if isinstance(diffusion, PaddedTDiffRec) else diffusion.score,
                data.train,
                self.num_items,
                rank_share=config.rank_share,
                largest=config.largest,
                scale=config.scale,
                band=(config.band_from, config.band_to),
                candidates=config.candidates,
                seen_positives=released,
                window=self.backbone.config.max_length if released else None,
            )
            self.positives = torch.from_numpy(signals.positives).to(self.popularity.device)
            if config.hbr:
                # Only BERT4Rec has a user's first interaction as a target. It has the average weight.
                weights[torch.from_numpy(known)] = torch.from_numpy(signals.weights).nan_to_num(config.scale)
        self.interaction_weights = weights.to(self.popularity.device)
        self.owners = torch.from_numpy(self.backbone_histories.owners).to(self.popularity.device)

    def artifacts(self, user_ids: pl.Series, item_ids: pl.Series) -> dict[str, pl.DataFrame]:
        if self.signals is None:
            return {}
        return {"signals.parquet": self.signals.to_frame(self.train_histories, user_ids, item_ids)}

    # --- training ------------------------------------------------------------------------------------------

    def batches(self, data: TrainingData, rng: np.random.Generator) -> SequenceBatches | RowBatches:
        if self.phase == "diffusion":
            return self.active_model.batches(data, rng)  # type: ignore[return-value]
        if self.config.loss == "bce":
            owners = self.backbone_histories.owners
            drawn = [draw_negatives(owners, interaction_keys(data.train, self.num_items), self.num_items, rng)]
            if self.config.nns and self.signals is not None:
                drawn.append(self.signals.draw(owners, self.num_items, rng))
            self.negatives = torch.from_numpy(np.stack(drawn, axis=1)).to(self.popularity.device)
        return self.backbone.batches(dataclasses.replace(data, train=self.backbone_histories), rng)

    def loss(self, batch: RowBatch | SequenceBatch) -> Tensor:
        if isinstance(batch, RowBatch):
            return self.active_model.loss(batch)
        batch = self.backbone.training_batch(batch)
        encoded = self.backbone.encode(self.backbone.noised(batch))
        hidden, importance = encoded.vectors, encoded.weights
        known = batch.targets < self.num_items
        importance = torch.ones_like(batch.targets, dtype=torch.float32) if importance is None else importance
        weights = self.interaction_weights[batch.interactions]
        # NaN at open ends: their timestep is fixed, so the sampler learns nothing from them.
        per_target = torch.full((len(hidden),), torch.nan, device=hidden.device)
        loss, per_target[known] = self.losses(hidden[known], _only(batch, known), importance[known], weights[known])
        loss = loss * _rank_weight(int(known.sum()), batch)
        if self.config.dpa:
            # No item follows the history: the diffusion model proposes some.
            ends, at_ends = hidden[~known], _only(batch, ~known)
            rows, items = self.liked(ends, self.owners[at_ends.interactions])
            rank_weight = _rank_weight(len(rows), batch)
            if len(rows):
                at_liked = dataclasses.replace(_only(at_ends, rows), targets=items)
                liked_loss, _ = self.losses(ends[rows], at_liked, importance[~known][rows])
                loss = loss + self.config.positive_weight * rank_weight * liked_loss
        if encoded.timesteps is not None:
            counted = rank_rows(batch.rank_weight)
            self.backbone.update_timestep_sampler(encoded.timesteps[counted], per_target[counted])
        return loss

    def losses(
        self, hidden: Tensor, batch: SequenceBatch, importance: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of states (n, d) at the batch's targets, and the (n,) losses, detached.

        Args:
            importance: (n,) importance weights of timesteps.
            weights: (n,) weights of interactions, which have negatives too; None: the targets are liked items.
        """
        if self.config.loss == "softmax":
            weights = importance if weights is None else weights * importance
            return next_item_loss(self.backbone, hidden, batch, None, weights)
        hidden = self.backbone.metric_space(hidden)
        table = self.backbone.metric_space(self.backbone.catalogue())
        positive = F.softplus(-(hidden * table[batch.targets]).sum(-1).float())
        count = max(len(positive), 1)  # a batch of users with one interaction each has open ends only
        if weights is None:
            return (importance * positive).sum() / count, positive.detach()
        negatives = self.negatives[batch.interactions]
        logits = torch.einsum("nd,nkd->nk", hidden, table[negatives.clamp(min=0)].to(hidden.dtype)).float()
        against = F.softplus(logits).masked_fill(negatives < 0, 0.0).mean(1)
        return (importance * (weights * positive + against)).sum() / count, (positive + against).detach()

    @torch.no_grad()
    def liked(self, ends: Tensor, users: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of ``ends`` (m, d), and the items taken as liked there.

        Of each user's candidates, these are the ones that the backbone itself ranks highest.
        """
        candidates = self.positives[users].long()
        table = self.backbone.metric_space(self.backbone.catalogue())
        logits = torch.einsum("md,mcd->mc", self.backbone.metric_space(ends).float(), table[candidates.clamp(min=0)])
        logits = logits.masked_fill(candidates < 0, -torch.inf)
        best = logits.topk(min(self.config.liked, logits.shape[1]), dim=1)
        rows, places = torch.nonzero(best.values > -torch.inf, as_tuple=True)
        return rows, candidates[rows, best.indices[rows, places]]

    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        of_signals = [] if self.diffusion is None else self.diffusion.noise_levels(data)
        return of_signals + self.backbone.noise_levels(data)

    # --- scoring -------------------------------------------------------------------------------------------

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        found = self.backbone.calibrate(validate)
        self.backbone.resolve(found)
        return found | super().calibrate(validate)

    def resolve(self, resolved: dict[str, Any]) -> None:
        super().resolve(resolved)
        self.backbone.resolve(resolved)


def open_ended(histories: Histories, num_items: int) -> Histories:
    """The histories, each non-empty one followed by an interaction with the unknown item ``num_items``.

    As a target it stands for whatever comes next. It is never an input, because it is the last.
    """
    lengths = histories.lengths
    longer = lengths + (lengths > 0)
    offsets = np.concatenate(([0], np.cumsum(longer)))
    items = np.full(offsets[-1], num_items, dtype=np.int32)
    items[np.arange(len(histories.items)) + np.repeat(offsets[:-1] - histories.offsets[:-1], lengths)] = histories.items
    return Histories(offsets, items)


def _rank_weight(count: int, batch: SequenceBatch) -> float:
    """This rank's weight for a mean over ``count`` targets: the average over ranks is then the mean over all targets.

    A collective operation. The known targets and the liked items of a batch are distributed differently over ranks, so
    each of the two means has its own weight.
    """
    count = count if batch.rank_weight else 0
    return count / (distributed.all_reduce_mean(count) or 1.0)


def _only(batch: SequenceBatch, chosen: Tensor) -> SequenceBatch:
    """The batch with the ``chosen`` targets only, a mask or indices."""
    fields = ("rows", "positions", "targets", "interactions")
    return dataclasses.replace(batch, **{name: getattr(batch, name)[chosen] for name in fields})
