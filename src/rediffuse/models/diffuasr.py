"""DiffuASR: diffusion augmentation for sequential recommendation (Liu et al., CIKM 2023, arXiv 2309.12858).

A generator learns what could have come before a history: the vectors of M successive items are noised, and a U-Net,
conditioned on what followed them, predicts the noise. For each user, M synthetic interactions are sampled, rounded to
items of the catalogue and put before the history. A sequence model, the *backbone*, is trained on these histories.

There are three phases. The *classifier*, a sequence model, gives the item vectors, which are not trained further, and
the guidance; then the *generator* and the backbone are trained. Without a backbone the classifier recommends, and the
run serves ``rediffuse augment diffuasr``.

Guidance moves samples towards the user: ``cf``, classifier-free (Ho & Salimans 2022), by sometimes training without the
condition; ``cg``, classifier-guided (Dhariwal & Nichol 2021), by what the classifier makes of the sample; ``none``, by
the condition only. What ``cg`` guides towards is the option ``guide``: by default a high probability that the user's
first own item follows the sample.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from rediffuse.batching.continuations import Continuation, Continuations
from rediffuse.batching.sequences import SequenceBatch, SequenceBatches, pad_right
from rediffuse.config import ModelConfig, NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.data.synthetic import prepend
from rediffuse.diffusion import (
    NoiseLevels,
    classifier_free,
    classifier_guided,
    condition_dropout,
    ddim,
    noise_levels,
    noise_schedule,
    q_sample,
    space_timesteps,
)
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.diffusion.schedule import NoiseSchedule
from rediffuse.diffusion.solvers import Network
from rediffuse.errors import ConfigError, TrainingError
from rediffuse.models import model_class
from rediffuse.models.backbone import backbone_class, backbone_config, refuse_prior
from rediffuse.models.base import TrainingData, Validation
from rediffuse.models.composite import Composite
from rediffuse.models.sequence import SequenceConfig, SequenceModel
from rediffuse.nn.unet import SequentialUNet

BACKBONES = ("bert4rec", "diffurec", "gru4rec", "s3rec", "sasrec")
# Scores in a block of users, for rounding and guidance.
BLOCK_SCORES = 4_000_000
SAMPLED_ROWS = 512
# Epochs of the generator without a lower training loss, after which the released program stops.
RELEASED_PATIENCE = 100
# BERT4Rec with the options of the released program, as far as ours has them.
_BERT4REC: dict[str, Any] = {
    **{"embedding_size": 64, "max_length": 200, "heads": 1, "dropout": 0.5, "item_features": False},
    **{"mask_last": 0.5, "loss": "bce", "temperature": None, "repeat_bias": False},
}
# Options of the released program.
_PAPER: dict[str, Any] = {
    "channels": 8,
    "multipliers": (1, 2, 2, 2),
    "classifier_model": "bert4rec",
    "classifier": _BERT4REC | {"mask_share": 0.4, "patience": 100},
    "backbone": "bert4rec",
    "backbone_options": _BERT4REC | {"mask_share": 0.6, "synthetic_targets": True},
    "epochs": 2000,
    "patience": 100,
    "generator_epochs": 3000,
    "pool": "sum",
    "item_vectors": "trained",
    "anywhere": False,
    "guidance": "cg",
    "forbid_own": False,
    "forbid_repeats": False,
}


class DiffuASRConfig(NeuralConfig):
    """Options of the loop are those of the backbone's training; the classifier and the generator have their own."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "released": _PAPER | {"fidelity": "released", "precision": "fp32", "item_vectors": "own"},
    }
    search: ClassVar = {"guidance_scale": Range(0.1, 10.0, log=True), "n": (3, 5, 10)}

    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: guidance in training too; cg with the wrong sign, the first step's factor for all "
        "steps, and log-sigmoids of inner products, towards the first own item in training and the last in sampling; "
        "the generator's epoch with the least training loss is kept.",
    )
    backbone: str | None = Field("sasrec", description="Model that is trained on the augmented histories; null: none.")
    backbone_options: dict[str, Any] = Field(
        {}, description="Options of the backbone, e.g. backbone_options.dropout=0.2."
    )
    classifier_model: Literal["sasrec", "bert4rec"] = Field(
        "sasrec", description="Model for item vectors and guidance."
    )
    classifier: dict[str, Any] = Field({}, description="Options of the classifier, e.g. classifier.epochs=50.")
    n: int = Field(10, ge=1, description="M, synthetic interactions before a history.")
    only_shorter_than: int | None = Field(None, ge=1, description="Augment only histories with fewer interactions.")
    guidance: Literal["none", "cf", "cg"] = Field("cf", description="none, cf: classifier-free, cg: classifier-guided.")
    guide: Literal["item", "cond", "seq", "bpr"] = Field(
        "item",
        description="What cg makes likely: the first own item (item), the history's items (seq), the first own item "
        "rather than another (bpr), or a state like the condition (cond).",
    )
    guidance_scale: float = Field(1.0, ge=0, description="Weight of the guidance in sampling; 0: none.")
    condition_dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of rows trained without their condition, with guidance=cf."
    )
    channels: int = Field(32, ge=8, description="Channels of the U-Net's first level, a multiple of 8.")
    multipliers: tuple[int, ...] = Field((1, 2), min_length=1, description="Factors of the channels, one per level.")
    pool: Literal["mean", "sum"] = Field("mean", description="How the history's vectors become the condition.")
    item_vectors: Literal["frozen", "trained", "own"] = Field(
        "frozen",
        description="The vectors that are noised: the classifier's (frozen), the same, trained further with the "
        "generator (trained), or new ones that are trained with it (own).",
    )
    anywhere: bool = Field(True, description="Learn from any M successive items; false: only from the first M.")
    noise_schedule: Literal["linear", "quad", "sigmoid", "cosine", "cosine_clip"] = "linear"
    diffusion_steps: int = Field(1000, ge=1, description="T, the steps of the noise schedule.")
    sampling_steps: int = Field(5, ge=1, description="Number of DDIM steps.")
    generator_epochs: int = Field(
        200, ge=1, description="Epochs of the generator; its last weights are kept, but with fidelity=released."
    )
    generator_rate: float = Field(1e-3, gt=0, description="Learning rate of the generator.")
    generator_batch: int = Field(512, ge=1, description="Users per step of the generator.")
    forbid_own: bool = Field(True, description="Do not generate items of the user's history.")
    forbid_repeats: bool = Field(True, description="Do not generate an item twice for a user.")
    sampling_temperature: float = Field(
        0.0, ge=0, description="Temperature of the choice of items; 0 takes the nearest."
    )

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        space_timesteps(self.diffusion_steps, f"ddim{self.sampling_steps}")
        if min(self.multipliers) < 1:
            raise ValueError(f"multipliers are {self.multipliers}; each must be at least 1")
        window = self.classifier_config().max_length
        if self.guidance == "cg" and self.n > window:
            raise ValueError(f"n={self.n} items do not fit the classifier's window, classifier.max_length={window}")
        if self.item_vectors == "own" and self.guidance == "cg" and self.fidelity == "corrected":
            raise ValueError(
                "guidance=cg asks the classifier, which does not know the vectors of item_vectors=own; take frozen or "
                "trained"
            )
        if self.backbone is not None:
            self.backbone_config()
        return self

    def classifier_config(self) -> SequenceConfig:
        """The options of the classifier.

        Raises:
            ConfigError: ``classifier`` has options that the classifier does not have, or a prior.
        """
        defaults = {"embedding_size": 64, "metric": self.metric, "precision": self.precision}
        config = model_class(self.classifier_model).Config.build(None, defaults | self.classifier)
        assert isinstance(config, SequenceConfig)
        refuse_prior("DiffuASR", "classifier", config)
        return config

    def generator_config(self) -> ModelConfig:
        """The options of the training loop for the generator."""
        own = {"epochs": self.generator_epochs, "batch_size": self.generator_batch}
        own |= {"learning_rate": self.generator_rate, "precision": self.precision, "metric": self.metric}
        own |= {"patience": RELEASED_PATIENCE} if self.fidelity == "released" else {}
        return ModelConfig.build(None, own)

    def backbone_class(self) -> type[SequenceModel]:
        """The class of the backbone.

        Raises:
            ConfigError: ``backbone`` is not one of `BACKBONES`.
        """
        return backbone_class("DiffuASR", str(self.backbone), BACKBONES)

    def backbone_config(self) -> SequenceConfig:
        """The options of the backbone: its own, and DiffuASR's options of the loop.

        Raises:
            ConfigError: ``backbone_options`` has options that the backbone does not have, or that are DiffuASR's own.
        """
        shared = {option: getattr(self, option) for option in ModelConfig.model_fields}
        return backbone_config("DiffuASR", self.backbone_class(), self.backbone_options, shared)


class Goal(NamedTuple):
    """What classifier guidance makes likely after B generated sequences.

    Attributes:
        first: (B,) each user's first own item.
        condition: (B, d) from `DiffuASR.conditions`, for guide=cond.
        items, offsets: the items (n,) of the histories, and where each begins (B,), for guide=seq.
        other: (B,) an item beside the first, for guide=bpr.
    """

    first: Tensor
    condition: Tensor | None = None
    items: Tensor | None = None
    offsets: Tensor | None = None
    other: Tensor | None = None


class DiffuASR(Composite):
    """A sequence model that is trained on histories to which a diffusion model has added synthetic interactions."""

    name = "diffuasr"
    reads_content = True  # the backbone does
    Config = DiffuASRConfig
    config: DiffuASRConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    synthetic: Tensor

    def __init__(self, config: DiffuASRConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        if config.n > num_items:
            raise ConfigError(f"n={config.n} is more than the {num_items} items of the catalogue.", "Lower n.")
        classifier_config = config.classifier_config()
        kind = model_class(config.classifier_model)
        assert issubclass(kind, SequenceModel)
        self.classifier = kind(classifier_config, num_items, num_users)
        size = classifier_config.embedding_size
        self.generator = SequentialUNet(config.n, size, config.channels, config.multipliers, condition_size=size)
        released = config.fidelity == "released"
        self.no_condition = nn.Parameter(torch.randn(size) if released else torch.zeros(size))
        self.schedule = noise_schedule(config.noise_schedule, config.diffusion_steps)
        self.backbone = None
        if config.backbone is not None:
            self.backbone = config.backbone_class()(config.backbone_config(), num_items, num_users)
        # The synthetic interactions of each known user; -1 for none.
        self.register_buffer("synthetic", torch.full((num_users, config.n), -1, dtype=torch.int32))
        if config.item_vectors == "own":
            self.own_vectors = nn.Parameter(torch.randn(num_items, size))
        elif config.item_vectors == "trained":
            self.vector_changes = nn.Parameter(torch.zeros(num_items, size))
        self.phase = self.phases[-1]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        items = state_dict.get(f"{prefix}synthetic")
        if items is not None and items.numel() and not -1 <= int(items.min()) <= int(items.max()) < self.num_items:
            others[-1].append(f"{prefix}synthetic: items are not -1 to {self.num_items - 1}")
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def phases(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("classifier", "generator", *self._backbone_phases)

    @property
    def _backbone_phases(self) -> dict[str, str]:
        """DiffuASR's name of each phase of the backbone -> the backbone's own name."""
        if self.backbone is None:
            return {}
        own = self.backbone.phases
        return {"backbone": own[0]} if len(own) == 1 else {f"backbone-{phase}": phase for phase in own}

    @property
    def active_model(self) -> SequenceModel:
        """The backbone in its phases, and the classifier before."""
        return self.backbone if self.backbone is not None and self.phase in self._backbone_phases else self.classifier

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.active_model.stochastic

    # --- phases --------------------------------------------------------------------------------------------

    def training_options(self, phase: str) -> ModelConfig:
        if phase == "generator":
            return self.config.generator_config()
        if phase == "classifier" or self.backbone is None:
            return self.classifier.config
        return self.backbone.training_options(self._backbone_phases[phase])

    def chosen_by_ranking(self, phase: str) -> bool:
        if self.backbone is not None and phase in self._backbone_phases:
            return self.backbone.chosen_by_ranking(self._backbone_phases[phase])
        return phase != "generator"

    def chosen_by_loss(self, phase: str) -> bool:
        return phase == "generator" and self.config.fidelity == "released"

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        longest = int(data.train.lengths.max(initial=0))
        needed = self.config.n + 2 * (self.config.fidelity == "released")
        if longest <= needed:
            raise TrainingError(
                f"No training history has more than {needed} interactions, and the generator learns from those.",
                f"Lower n; the longest history has {longest} interactions.",
            )
        for model in (self.classifier, self.backbone):
            if model is not None:
                model.fit(data)

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        self.phase = phase
        trained = self.generator if phase == "generator" else self.active_model
        self.requires_grad_(False)
        trained.requires_grad_(True)
        if phase == "generator":
            for parameter in (self.no_condition, *self.trained_vectors()):
                parameter.requires_grad_(True)
        if self.backbone is not None and phase in self._backbone_phases:
            self.backbone.begin_phase(self._backbone_phases[phase], data)
            self.eval()
            self.synthetic.copy_(torch.from_numpy(self.generate(data.train, data.seed)).to(self.synthetic))

    # --- training ------------------------------------------------------------------------------------------

    def batches(self, data: TrainingData, rng: np.random.Generator) -> SequenceBatches | Continuations:
        if self.phase == "classifier":
            return self.classifier.batches(data, rng)
        if self.backbone is not None and self.active_model is self.backbone:
            augmented = prepend(data.train, self.synthetic.cpu().numpy().astype(np.int64))
            return self.backbone.batches(dataclasses.replace(data, train=augmented), rng)
        return Continuations(
            data.train,
            length=self.config.n,
            max_length=self.classifier.config.max_length,
            batch_size=self.config.generator_batch,
            anywhere=self.config.anywhere,
            rng=rng,
            released=self.config.fidelity == "released",
        )

    def loss(self, batch: SequenceBatch | Continuation) -> Tensor:
        if isinstance(batch, SequenceBatch):
            return self.active_model.loss(batch)
        config, rows = self.config, len(batch.targets)
        x_0, condition = self.vectors(batch.targets), self.conditions(batch.items, batch.offsets)
        released = config.fidelity == "released"
        if config.guidance == "cf" and not released:
            dropped = condition_dropout(rows, config.condition_dropout, device=condition.device)
            condition = torch.where(dropped[:, None], self.no_condition, condition)
        half = torch.randint(config.diffusion_steps, (rows // 2 + 1,), device=x_0.device)
        t = torch.cat((half, config.diffusion_steps - 1 - half))[:rows]  # antithetic, as released
        noise = torch.randn_like(x_0)
        network = self.network(condition)
        if released:  # the network learns to undo the guidance
            goal = Goal(batch.items[batch.offsets], condition, batch.items, batch.offsets)
            network = self.guided(network, condition, goal, torch.randn_like)
        output = network(q_sample(self.schedule, x_0, t, noise), t)
        return (output - noise).square().mean() * batch.rank_weight

    # --- vectors -------------------------------------------------------------------------------------------

    def trained_vectors(self) -> list[nn.Parameter]:
        """The parameters of item vectors that are trained with the generator."""
        named = {"own": "own_vectors", "trained": "vector_changes"}
        return [getattr(self, named[kind])] if (kind := self.config.item_vectors) in named else []

    def table(self) -> Tensor:
        """(num_items, d) the item vectors, before they are scaled; those of the classifier are detached."""
        if self.config.item_vectors == "own":
            return self.own_vectors
        of_classifier = self.classifier.catalogue().detach()
        return of_classifier + self.vector_changes if self.config.item_vectors == "trained" else of_classifier

    def scale(self) -> Tensor:
        """Root mean square of the classifier's item vectors; 1 for own ones, which begin so.

        Divided by it, they are as large as standard normal noise.
        """
        if self.config.item_vectors == "own":
            return self.no_condition.new_ones(())
        return self.classifier.catalogue().square().mean().sqrt().clamp_min(1e-8)

    def vectors(self, items: Tensor) -> Tensor:
        """(...,) item numbers -> (..., d) scaled vectors: what is noised."""
        return F.embedding(items, self.table()) / self.scale().detach()

    def conditions(self, items: Tensor, offsets: Tensor) -> Tensor:
        """(B, d) the pooled item vectors of each history."""
        return F.embedding_bag(items, self.table(), offsets, mode=self.config.pool) / self.scale().detach()

    @torch.no_grad()
    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        mean_square = float(self.vectors(torch.arange(self.num_items, device=self.no_condition.device)).square().mean())
        own = noise_levels(self.schedule, "scaled item vectors", mean_square, starts_from_noise=True)
        return [own, *([] if self.backbone is None else self.backbone.noise_levels(data))]

    # --- generation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, histories: Histories, seed: int = 0) -> NDArray[np.int64]:
        """(rows, n) synthetic items that could have come before each history; -1 for histories that get none.

        A row depends on its history and ``seed`` alone.
        """
        chosen = histories.lengths > 0
        if self.config.only_shorter_than is not None:
            chosen &= histories.lengths < self.config.only_shorter_than
        generated = np.full((len(histories), self.config.n), -1, dtype=np.int64)
        users = np.flatnonzero(chosen)
        step = max(1, min(SAMPLED_ROWS, BLOCK_SCORES // self.num_items))
        for start in range(0, len(users), step):
            block = users[start : start + step]
            generated[block] = self._generate_block(histories.take(block), seed).cpu().numpy()
        return generated

    def _generate_block(self, rows: Histories, seed: int) -> Tensor:
        device = self.no_condition.device
        items, lengths = pad_right(rows, max(int(rows.lengths.max()), 1), self.num_items)
        noise = RowNoise(row_keys(items, lengths).to(device), seed)
        # As in training, the condition is what follows directly.
        near = rows.where(rows.positions < self.classifier.config.max_length)
        following = torch.from_numpy(near.items.astype(np.int64)).to(device)
        offsets = torch.from_numpy(near.offsets[:-1]).to(device)
        condition, first = self.conditions(following, offsets), items[:, 0].to(device)
        if self.config.fidelity == "released":  # there, histories are reversed here and not in training
            first = following[torch.from_numpy(near.offsets[1:]).to(device) - 1]
        x = self.sample(condition, first, noise, Goal(first, condition, following, offsets))
        own = torch.zeros(len(rows), self.num_items, dtype=torch.bool, device=device)
        if self.config.forbid_own:
            own[torch.from_numpy(rows.owners).to(device), torch.from_numpy(rows.items.astype(np.int64)).to(device)] = (
                True
            )
        return round_to_items(
            x,
            self.table(),
            own,
            forbid_repeats=self.config.forbid_repeats,
            temperature=self.config.sampling_temperature,
            noise=noise,
        )

    def network(self, condition: Tensor) -> Network:
        """The generator under a condition (B, d)."""
        return lambda x, t: self.generator(x, t, condition)

    def guided(self, network: Network, condition: Tensor, goal: Goal, noise: Callable[[Tensor], Tensor]) -> Network:
        """The generator ``network`` under the guidance of the options; ``noise`` draws the items beside the goal."""
        config = self.config
        if config.guidance == "cf":
            empty = self.network(self.no_condition.expand_as(condition))
            return classifier_free(network, empty, config.guidance_scale)
        if config.guidance == "none":
            return network
        if config.guide == "bpr":
            uniform = torch.special.ndtr(noise(condition[:, :1]).double())[:, 0]
            away = 1 + (uniform * (self.num_items - 1)).long().clamp(max=self.num_items - 2)
            goal = goal._replace(other=(goal.first + away) % self.num_items)
        guided = _released_guidance if config.fidelity == "released" else classifier_guided
        return guided(network, lambda x, t: self.log_prob(x, *goal), self.schedule, config.guidance_scale)

    def sample(
        self, condition: Tensor, first: Tensor, noise: Callable[[Tensor], Tensor], goal: Goal | None = None
    ) -> Tensor:
        """(B, n, d) vectors, by DDIM from noise, under guidance.

        Args:
            condition: (B, d) from `conditions`.
            first: (B,) each user's first own item, towards which cg guides.
            noise: gives the start of the chain.
            goal: what cg guides towards; None: ``first``.
        """
        config = self.config
        start = noise(condition.new_empty(len(condition), config.n, condition.shape[1]))
        network = self.guided(self.network(condition), condition, goal or Goal(first, condition), noise)
        kept = space_timesteps(config.diffusion_steps, f"ddim{config.sampling_steps}")
        return ddim(network, start, self.schedule, kept, prediction="eps")

    def log_prob(
        self,
        x: Tensor,
        first: Tensor,
        condition: Tensor | None = None,
        items: Tensor | None = None,
        offsets: Tensor | None = None,
        other: Tensor | None = None,
    ) -> Tensor:
        """(B,) how likely a goal is for the classifier after generated vectors (B, n, d), by the option guide.

        With ``item`` it is log p(first own item), with ``seq`` the mean of log p over the history, with ``bpr`` the log
        probability that the first own item is before another, and with ``cond`` minus the mean squared difference of
        the state and the condition. Other arguments are the fields of `Goal`.
        """
        guide, released = self.config.guide, self.config.fidelity == "released"
        state = self.classifier.read_vectors(x * self.scale())
        if guide == "cond":
            assert condition is not None
            return -(state / self.scale() - condition).square().mean(1)
        table = self.table()
        if not released:  # inner products, there
            state, table = self.classifier.metric_space(state), self.classifier.metric_space(table)
        logits = (state @ table.T).float()
        rows = torch.arange(len(x), device=x.device)
        if guide == "bpr":
            assert other is not None
            return F.logsigmoid(logits[rows, first] - logits[rows, other])
        likely = F.logsigmoid(logits) if released else torch.log_softmax(logits, dim=1)
        if guide == "item":
            return likely[rows, first]
        assert items is not None
        assert offsets is not None
        owners = torch.bucketize(torch.arange(len(items), device=x.device), offsets, right=True) - 1
        counts = torch.bincount(owners, minlength=len(x))
        return likely.new_zeros(len(x)).index_add(0, owners, likely[owners, items]) / counts

    # --- scoring -------------------------------------------------------------------------------------------

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        found = self.active_model.calibrate(validate)
        self.active_model.resolve(found)
        return found | super().calibrate(validate)

    def resolve(self, resolved: dict[str, Any]) -> None:
        super().resolve(resolved)
        self.active_model.resolve(resolved)

    def as_trained(self, histories: Histories, users: NDArray[np.int64]) -> Histories:
        if self.active_model is self.backbone:
            known = users >= 0
            synthetic = np.full((len(users), self.config.n), -1, dtype=np.int64)
            synthetic[known] = self.synthetic[torch.from_numpy(users[known]).to(self.synthetic.device)].cpu().numpy()
            histories = prepend(histories, synthetic)
        return histories


def round_to_items(
    x: Tensor,
    table: Tensor,
    forbidden: Tensor,
    *,
    forbid_repeats: bool = True,
    temperature: float = 0.0,
    noise: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """(B, n) the items whose vectors are nearest to x (B, n, d) by cosine, one place after the other.

    If all items are excluded at a place, any item is allowed there.

    Args:
        table: (items, d) item vectors.
        forbidden: (B, items) bool, items that a row must not have.
        forbid_repeats: a row must not have an item twice.
        temperature: above 0, items are drawn from the softmax of cosine / temperature.
        noise: source of the draws; called once per place with a (B, items) tensor.
    """
    directions, points = F.normalize(table, dim=1), F.normalize(x, dim=2)
    taken, found = forbidden.clone(), []
    rows = torch.arange(len(x), device=x.device)
    for place in range(x.shape[1]):
        cosine = points[:, place] @ directions.T
        if temperature > 0 and noise is not None:
            uniform = torch.special.ndtr(noise(cosine).double()).clamp(1e-12, 1 - 1e-12)
            cosine = cosine / temperature - (-uniform.log()).log().to(cosine.dtype)  # Gumbel-max
        free = ~taken
        full = ~free.any(1)
        free[full] = True
        chosen = cosine.masked_fill(~free, -torch.inf).argmax(1)
        if forbid_repeats:
            taken[rows, chosen] = True
        found.append(chosen)
    return torch.stack(found, dim=1)


def _released_guidance(
    network: Network, log_prob: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, scale: float
) -> Network:
    """`classifier_guided` as released: the sign is wrong, and sqrt(1 - abar_0) is the factor of all steps."""
    if scale == 0:
        return network

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            point = x_t.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(-log_prob(point, t.clone()).sum(), point)
        return network(x_t, t) - scale * float(schedule.sqrt_one_minus_alphas_cumprod[0]) * gradient

    return guided
