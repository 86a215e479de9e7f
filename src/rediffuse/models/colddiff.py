"""ColdDiff: a denoiser that draws the vector of a new item from its content.

A sequence model or a matrix factorisation, the *backbone*, is trained on the interactions alone. An item without an
interaction in training has no vector there that means anything. So a second phase learns p(vector | content) from the
items that have one: x_0 is the item's vector in the space in which the backbone ranks, noise is added to it, and a
small network predicts x_0 from x_t, t and the content (classifier-free: sometimes without it). New items get the mean
of several draws, and the backbone ranks them with all others.

The ablation is regression: the same network, which reads zeros in place of x_t, predicts the vector from the content.

A tenth of the items is hidden from the second phase. While it is validated, these items are ranked by what is drawn for
them, as new items are, and all others come after them. So the metric that selects the weights says how well hidden and
new items are ranked among themselves; how they stand to the others does not count, which would prefer vectors that
nothing leads to. Afterwards hidden items have their own vectors again.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.items import ItemBatch, ItemBatches
from rediffuse.config import ContentConfig, ModelConfig, NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.diffusion import (
    NoiseLevels,
    classifier_free,
    condition_dropout,
    noise_levels,
    noise_schedule,
    q_sample,
    solver,
    space_timesteps,
)
from rediffuse.diffusion.noise import RowNoise, mix
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, did_you_mean
from rediffuse.features import Content
from rediffuse.models import model_class
from rediffuse.models.backbone import refuse_prior
from rediffuse.models.base import TrainingData, Validation
from rediffuse.models.composite import Composite
from rediffuse.models.content import ContentModel
from rediffuse.models.sampling import Sampling
from rediffuse.nn.item_table import ItemContent
from rediffuse.nn.vector_denoiser import VectorDenoiser
from rediffuse.seeds import derive

BACKBONES = ("bert4rec", "bprmf", "diffurec", "gru4rec", "lightgcn", "sasrec")
# Share of the items with interactions that is hidden from the generator's training.
HIDDEN_SHARE = 0.1
# An item with n interactions has the weight n / (n + EVIDENCE): the vector of a rare item is mostly chance.
EVIDENCE = 5
# Vectors that are drawn at once.
DRAWN_ROWS = 8192


class ColdDiffConfig(NeuralConfig):
    """Options of the loop are those of the generator's training; the backbone's are all in ``backbone_options``."""

    search: ClassVar = {
        "learning_rate": Range(3e-4, 3e-3, log=True),
        "hidden_size": (128, 256, 512),
        "dropout": Range(0.0, 0.5),
        "guidance_scale": Range(0.0, 3.0),
    }

    epochs: int = Field(200, ge=0, description="Upper bound; early stopping usually ends before it.")
    batch_size: int = Field(256, ge=1, description="Items per optimiser step.")
    validate_every: int = Field(2, ge=1, description="Epochs between validations.")
    patience: int = Field(5, ge=1, description="Validations without improvement before stopping.")
    backbone: str = Field("gru4rec", description="The model whose item vectors are generated, and which recommends.")
    backbone_options: dict[str, Any] = Field(
        {}, description="Options of the backbone, its training included, e.g. backbone_options.epochs=20."
    )
    diffusion: bool = Field(True, description="False: regression by the same network, the ablation.")
    hidden_size: int = Field(256, ge=2, description="Width of the denoiser.")
    layers: int = Field(2, ge=1, description="Residual layers of the denoiser.")
    dropout: float = Field(0.1, ge=0, lt=1, description="In the denoiser.")
    noise_schedule: Literal["cosine", "cosine_clip", "linear", "sqrt"] = "cosine"
    diffusion_steps: int = Field(100, ge=1, description="T, the steps of the noise schedule.")
    solver: Literal["ancestral", "ddim", "dpmpp_2m", "one_step"] = "ancestral"
    sampling_steps: int = Field(10, ge=1, description="Denoising steps of a draw.")
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="Share of items trained without their content.")
    guidance_scale: float = Field(
        1.0, ge=-1, description="Weight of the guidance by the content, also in the ablation; 0: none beyond it."
    )
    draws: int = Field(8, ge=1, description="Vectors drawn for a new item, whose mean it gets; 1: it gets a sample.")

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} is more than diffusion_steps={self.diffusion_steps}"
            )
        if self.guidance_scale and not self.condition_dropout:
            raise ValueError(
                "guidance_scale needs a condition_dropout above 0: it asks the network without content too"
            )
        self.backbone_config()
        return self

    @classmethod
    def of_phase(cls, phase: str, run: dict[str, Any]) -> dict[str, Any]:
        if run["data"].get("item_features"):
            raise ConfigError(
                f"The run of {run['model']}, given for phase {phase!r}, has item vectors made of content already.",
                "Train it with --set item_features=false.",
            )
        return {phase: run["model"], f"{phase}_options": run["config"]}

    def backbone_class(self) -> type[ContentModel]:
        """The class of the backbone.

        Raises:
            ConfigError: ``backbone`` is not one of `BACKBONES`.
        """
        if self.backbone not in BACKBONES:
            raise ConfigError(
                f"{self.backbone!r} is not a backbone of ColdDiff.", did_you_mean(self.backbone, BACKBONES)
            )
        kind = model_class(self.backbone)
        assert issubclass(kind, ContentModel)
        return kind

    def backbone_config(self) -> ContentConfig:
        """The options of the backbone, which reads no item features.

        Raises:
            ConfigError: ``backbone_options`` has options that the backbone does not have, or a prior.
        """
        shared = {"metric": self.metric, "precision": self.precision}
        options = shared | self.backbone_options | {"item_features": False}
        config = self.backbone_class().Config.build(None, options)
        assert isinstance(config, ContentConfig)
        refuse_prior("ColdDiff", "backbone_options", config)
        return config


class ColdDiff(Composite):
    """A recommender that knows new items by vectors that diffusion draws from their content.

    Attributes:
        content: content of the items and the first layer that reads it; None until `fit`, or until a run is loaded.
        hidden: (h,) items that are ranked by their drawn vectors while the generator is trained; None otherwise.
        targets: (num_items, d) x_0 of the items; `begin_phase` fills it, and ``weights`` (num_items,).
    """

    name = "colddiff"
    reads_content = True
    needs_content = True
    Config = ColdDiffConfig
    config: ColdDiffConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    phases = ("backbone", "generator")
    centre: Tensor
    scale: Tensor
    seed: Tensor

    def __init__(self, config: ColdDiffConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.backbone = config.backbone_class()(config.backbone_config(), num_items, num_users)
        # Of BPR-MF, the bias of the item is a coordinate too.
        size = self.backbone.config.embedding_size + (config.backbone == "bprmf")  # pyright: ignore
        self.denoiser = VectorDenoiser(size, config.hidden_size, config.layers, config.dropout)
        self.no_content = nn.Parameter(torch.zeros(config.hidden_size))
        self.content: ItemContent | None = None
        self.schedule = noise_schedule(config.noise_schedule, config.diffusion_steps)
        # x_0 is (vector - centre) / scale, and the noise is seeded by `seed`.
        self.register_buffer("centre", torch.zeros(size))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        self.phase = "generator"
        self.hidden: Tensor | None = None
        self.drawn: Tensor | None = None  # (h, d) vectors of the hidden items
        self.learned = np.empty(0, dtype=np.int64)  # items that train the generator
        self.targets = self.weights = torch.empty(0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        # Before the loading of the submodules, of which content is one.
        names = ("sparse_weight", "dense_weight", "dense")
        of_sparse, of_dense, dense = (state_dict.get(f"{prefix}content.{name}") for name in names)
        if self.content is None and all(part is not None and part.dim() == 2 for part in (of_sparse, of_dense, dense)):
            self.content = ItemContent(self.num_items, (len(of_sparse), len(of_dense)), self.config.hidden_size)  # pyright: ignore
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def active_model(self) -> ContentModel:
        return self.backbone

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.backbone.stochastic

    @property
    def holds_users(self) -> bool:  # type: ignore[override]
        return self.backbone.holds_users

    # --- phases --------------------------------------------------------------------------------------------

    def training_options(self, phase: str) -> ModelConfig:
        return self.backbone.config if phase == "backbone" else self.config

    def check(self, data: TrainingData) -> None:
        super().check(data)
        learned = np.asarray(data.popularity) > 0
        if data.content is None:
            raise DataError(
                f"{self.name} draws the vectors of new items from item features, and the data declare none.",
                "Declare columns of the item table: prepare --item-features category,brand,title:text, or "
                "with_features(...) of a dataset.",
            )
        known = data.content.known
        if not known[learned].any():
            raise DataError(
                f"No item with an interaction in training has a value of a declared feature, and {self.name} learns "
                "from such items.",
                "Declare features that are known for more items.",
            )
        if without := int((~known & ~learned).sum()):
            warnings.warn(
                f"{without:,} of {int((~learned).sum()):,} items without an interaction in training have no value of "
                "any declared feature. Their vectors are drawn without content.",
                RediffuseWarning,
                stacklevel=2,
            )

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        self.backbone.fit(data)
        self.seed.fill_(data.seed % 2**63)
        assert data.content is not None, "call check first"
        matrix, dense = data.content.sparse, data.content.dense
        widths = (matrix.shape[1], dense.shape[1])  # pyright: ignore[reportOptionalSubscript]
        reader = ItemContent(self.num_items, widths, self.config.hidden_size)  # pyright: ignore[reportArgumentType]
        reader.sparse.set(matrix)
        reader.dense.copy_(torch.from_numpy(dense))
        # What it adds to the first layer begins with variance 1.
        square = float((matrix.data**2).sum(dtype=np.float64) + (dense**2).sum(dtype=np.float64)) / len(dense)
        for weight in (reader.sparse_weight, reader.dense_weight):
            nn.init.normal_(weight, std=max(square, 1e-12) ** -0.5)
        self.content = reader.to(self.no_content.device)

    def begin_phase(self, phase: str, data: TrainingData) -> None:
        self.phase = phase
        self.show_hidden()
        self.requires_grad_(False)
        if phase == "backbone":
            self.backbone.requires_grad_(True)
            self.backbone.begin_phase(self.backbone.phases[0], data)
            return
        for trained in (self.denoiser, self.content):
            assert trained is not None
            trained.requires_grad_(True)
        self.no_content.requires_grad_(True)
        self._set_targets(data)

    @torch.no_grad()
    def _set_targets(self, data: TrainingData) -> None:
        """Choose the hidden items, and derive x_0 and the weights of the others. Nothing depends on earlier steps."""
        counts = np.asarray(data.popularity)
        device = self.centre.device
        items = np.random.default_rng(derive(data.seed, "hidden items")).permutation(np.flatnonzero(counts > 0))
        hidden, self.learned = np.split(items, [int(HIDDEN_SHARE * len(items))])
        self.hidden = torch.from_numpy(np.sort(hidden)).to(device)
        self.backbone.eval()
        self.backbone.prepare()
        vectors = self.backbone.index_vectors()
        assert vectors is not None
        known = vectors[torch.from_numpy(self.learned).to(device)]
        self.centre.copy_(known.mean(0))
        self.scale.copy_((known - self.centre).square().mean().sqrt().clamp_min(1e-8))
        self.targets = ((vectors - self.centre) / self.scale).detach()
        weights = torch.from_numpy(counts / (counts + EVIDENCE)).float()
        self.weights = (weights / weights[self.learned].mean()).to(device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.backbone.parameter_groups() if self.phase == "backbone" else super().parameter_groups()

    # --- training ------------------------------------------------------------------------------------------

    def batches(self, data: TrainingData, rng: np.random.Generator) -> Any:
        if self.phase == "backbone":
            return self.backbone.batches(data, rng)
        return ItemBatches(self.learned, batch_size=self.config.batch_size, rng=rng)

    def loss(self, batch: Any) -> Tensor:
        return self.generator_loss(batch) if isinstance(batch, ItemBatch) else self.backbone.loss(batch)

    def generator_loss(self, batch: ItemBatch) -> Tensor:
        """The squared error of x0_hat, weighted by the evidence for each item."""
        x_0, config = self.targets[batch.items], self.config
        known, condition = self.conditions(batch.items)
        known = known & ~condition_dropout(len(x_0), config.condition_dropout, device=x_0.device)
        if config.diffusion:
            t = torch.randint(config.diffusion_steps, (len(x_0),), device=x_0.device)
            x_t = q_sample(self.schedule, x_0, t, torch.randn_like(x_0))
        else:
            t, x_t = torch.zeros_like(batch.items), torch.zeros_like(x_0)
        estimate = self.denoiser(x_t, t, torch.where(known[:, None], condition, self.no_content))
        errors = (estimate.float() - x_0).square().mean(1)
        return (errors * self.weights[batch.items]).mean() * batch.rank_weight

    def conditions(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """(n,) whether any content of the items (n,) is known, and (n, H) what it adds to the first layer."""
        assert self.content is not None
        values = self.content.sparse.offsets.value.diff()[items]
        return (values > 0) | (self.content.dense[items] != 0).any(1), self.content(items)

    @torch.no_grad()
    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        found = self.backbone.noise_levels(data)
        if self.config.diffusion and len(self.targets):
            mean_square = float(self.targets[self.learned].square().mean())
            found.append(noise_levels(self.schedule, "scaled item vectors", mean_square, starts_from_noise=True))
        return found

    # --- generation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, items: Tensor) -> Tensor:
        """(n, d) vectors of items (n,), drawn from their content, in the space in which the backbone ranks.

        A vector depends on the item's number and content and on the seed of the training alone.
        """
        rows = max(1, DRAWN_ROWS // self.config.draws)
        found = [self.draw(block).mean(1) for block in items.split(rows)]
        return torch.cat(found) if found else self.centre.new_empty(0, len(self.centre))

    @torch.no_grad()
    def draw(self, items: Tensor) -> Tensor:
        """(n, draws, d) the single draws of `generate`; the ablation has one, its prediction."""
        config, size = self.config, len(self.centre)
        draws = config.draws if config.diffusion else 1
        known, condition = self.conditions(items)
        condition = torch.where(known[:, None], condition, self.no_content).repeat_interleave(draws, 0)
        nothing = self.no_content.expand_as(condition)
        network = classifier_free(
            lambda x, t: self.denoiser(x, t, condition),
            lambda x, t: self.denoiser(x, t, nothing),
            config.guidance_scale,
        )
        if config.diffusion:
            source = RowNoise(mix(items), int(self.seed))

            def noise(like: Tensor) -> Tensor:
                return source(like.view(len(items), -1)).view_as(like)

            start = noise(condition.new_empty(len(condition), size))
            steps = space_timesteps(config.diffusion_steps, config.sampling_steps)
            x_0 = solver(config.solver)(network, start, self.schedule, steps, generator=noise)
        else:
            x_0 = network(condition.new_zeros(len(items), size), torch.zeros_like(items))
        return self.centre + self.scale * x_0.view(len(items), draws, size)

    def prepare(self) -> None:
        """Place the items without an interaction in training, and in the generator's training the hidden ones."""
        self.backbone.prepare()
        if self.phase == "backbone":
            return
        new = torch.nonzero(self.popularity == 0).squeeze(1)
        if len(new):
            self.backbone.place_items(new, self.generate(new))
        if self.hidden is not None:
            self.drawn = self.generate(self.hidden)

    def show_hidden(self) -> None:
        """Rank the hidden items by their own vectors again."""
        self.hidden = self.drawn = None

    # --- choices -------------------------------------------------------------------------------------------

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Measure the drawn vectors of the hidden items; let the backbone and the prior choose, which see their own."""
        found: dict[str, Any] = {}
        if self.hidden is not None and self.drawn is not None and len(self.hidden):
            own = F.normalize(self.targets[self.hidden], dim=1)
            drawn = F.normalize(self.drawn - self.centre, dim=1)
            found["hidden_items"] = {"items": len(own), "cosine": float((own * drawn).sum(1).mean())}
        self.show_hidden()
        of_backbone = self.backbone.calibrate(validate)
        self.backbone.resolve(of_backbone)
        return found | of_backbone | super().calibrate(validate)

    def resolve(self, resolved: dict[str, Any]) -> None:
        self.show_hidden()
        super().resolve(resolved)
        self.backbone.resolve(resolved)

    # --- scoring -------------------------------------------------------------------------------------------

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        return self.backbone.has_user_state(users)

    def index_vectors(self) -> Tensor:
        vectors = self.backbone.index_vectors()
        assert vectors is not None
        return vectors if self.drawn is None else vectors.index_copy(0, self.hidden, self.drawn)  # pyright: ignore

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        if self.drawn is None:
            return super().score_known(histories, users, sampling)
        queries = self.query_vectors(histories, users, sampling)
        scores = self.scores_by_vectors(queries, self.index_vectors(), histories)
        others = self.popularity > 0
        others[self.hidden] = False
        lowest = scores.amin(1, keepdim=True) - 1
        return torch.where(others, lowest, scores)

    # --- new items -----------------------------------------------------------------------------------------

    @property
    def scores_new_items(self) -> bool:
        return self.content is not None

    def describe_added(self, content: Content, at: int) -> None:
        assert self.content is not None
        self.content.describe_added(content.sparse, content.dense, at)
        if self.prior is not None:
            self.prior.graph.describe_added(content, at)
        new = torch.arange(at, self.num_items)
        self.backbone.place_items(new, self.generate(new))

    def add_item_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        super().add_item_rows(state, prefix, added)
        self.backbone.add_item_rows(state, f"{prefix}backbone.", added)
        assert self.content is not None
        self.content.add_rows(state, f"{prefix}content.", self.num_items, added)
