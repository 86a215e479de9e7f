"""PreferDiff and DreamRec: the next item's vector is generated from noise alone, guided by the history.

DreamRec (Yang et al., NeurIPS 2023, arXiv 2310.20453): a transformer reads the history into h, and a linear layer
estimates the vector x_0 of the next item from (x_t, h, t). Without negatives, the loss is the squared error. Now and
then h is dropped, and inference is guided: x0_hat = (1 + w) f(x_t, h, t) - w f(x_t, none, t), from pure noise.

PreferDiff (Liu et al., ICLR 2025, arXiv 2410.13117) adds a preference: the error of the next item should be smaller
than that of the centroid of some other items, noised to the same step,

    weight * e+ - (1 - weight) log sigmoid(-gamma (e+ - e-))

with e = (1 - cos(x_0, x0_hat))^2 and DDIM in few steps. Differences: every position of a history is a target, as in
our SASRec, which is the encoder; the vectors are scaled to rms 1 before they are noised (``normalize=false``: not); and
the centroid is of one item by default, because that of many points to popular items, which are then ranked last.
The preset ``dreamrec`` is DreamRec.

Ablation (no diffusion): with ``diffusion=false`` the linear layer gets zeros for x_t, so that it maps h to the next
item's vector; the loss is the same.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.config import Range
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
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.sasrec import SASRec, SASRecConfig
from rediffuse.models.sampling import Sampling
from rediffuse.nn import sinusoidal_embedding

DREAMREC: dict[str, Any] = {"error": "squared", "preference": False, "solver": "ancestral", "embedding_size": 64}
_PAPER: dict[str, Any] = {
    **{"embedding_size": 3072, "max_length": 10, "form": "prefix", "blocks": 1, "dropout": 0.1, "item_features": False},
    **{"batch_size": 256, "epochs": 150, "learning_rate": 1e-4, "metric": "hr@5"},
    **{"normalize": False, "temperature": None, "negatives": 255, "preference_scale": 5.0},
    **{"diffusion_steps": 2000, "sampling_steps": 20},
}


class PreferDiffConfig(SASRecConfig):
    """Options of PreferDiff beside those of its encoder, SASRec."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "paper:beauty": _PAPER | {"guidance": 8.0},
        "paper:toys": _PAPER | {"guidance": 6.0, "preference_weight": 0.6},
        "released": _PAPER,
        "dreamrec": DREAMREC,
    }
    search: ClassVar = {
        "learning_rate": Range(3e-4, 5e-3, log=True),
        "dropout": Range(0.1, 0.6),
        "guidance": (0.0, 1.0, 2.0, 5.0),
        "preference_weight": (0.2, 0.4, 0.6, 0.8),
    }

    # Options of SASRec that this loss has no place for.
    loss: Literal["denoising"] = Field("denoising", description="See error and preference.")  # type: ignore
    item_optimizer: Literal["adamw"] = Field("adamw", description="The only one.")  # type: ignore
    repeat_bias: Literal[False] = Field(False, description="There are no logits in the loss.")  # type: ignore
    negatives: int | None = Field(
        1, ge=1, description="Items of the batch whose centroid is the other side; that of many is popular."
    )

    error: Literal["cosine", "squared"] = Field("cosine", description="cosine: (1 - cos)^2.")
    preference: bool = Field(True, description="False: DreamRec's loss, the error alone.")
    preference_weight: float = Field(0.4, ge=0, le=1, description="Weight of the error against the preference.")
    preference_scale: float = Field(1.0, gt=0, description="gamma, in the sigmoid.")
    embedding_std: float = Field(
        1.0, gt=0, description="Standard deviation of new item embeddings; where it is small, they collapse."
    )
    normalize: bool = Field(True, description="Noise item vectors of rms 1; false: the rows of the item table.")
    diffusion: bool = Field(True, description="False: the ablation (no diffusion).")
    diffusion_steps: int = Field(200, ge=1, description="T, the steps of the noise schedule.")
    noise_schedule: Literal["linear", "cosine", "sqrt"] = "linear"
    history_dropout: float = Field(0.1, ge=0, lt=1, description="Share of the targets that are trained without h.")
    guidance: float = Field(2.0, ge=0, description="w, the weight of the guidance at inference.")
    solver: Literal["ddim", "ancestral"] = "ddim"
    sampling_steps: int = Field(20, ge=1, description="Steps at inference, at most diffusion_steps.")

    @model_validator(mode="after")
    def _can_be_guided(self) -> Self:
        if self.diffusion and self.guidance and not self.history_dropout:
            raise ValueError(f"guidance={self.guidance:g} needs history_dropout above 0, or set guidance=0")
        if self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} is more than diffusion_steps={self.diffusion_steps}"
            )
        return self


class PreferDiff(SASRec):
    """The vector of the next item, drawn from noise under the guidance of the history; DreamRec with a preference."""

    name = "preferdiff"
    Config = PreferDiffConfig
    learns_residual = False
    config: PreferDiffConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: PreferDiffConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        self.item_embedding.initialise(std=config.embedding_std)
        self.time = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.no_history = nn.Parameter(torch.randn(size))
        self.estimator = nn.Linear(3 * size, size)
        self.schedule = noise_schedule(config.noise_schedule, steps=config.diffusion_steps)

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.config.diffusion

    def noised_space(self, x: Tensor) -> Tensor:
        """Vectors (..., d) in the space in which noise is added: of rms 1, or unchanged with ``normalize=false``."""
        return F.normalize(x, dim=-1) * self.config.embedding_size**0.5 if self.config.normalize else x

    def estimate(self, x_t: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """x0_hat (n, d) from states (n, d), histories (n, d) and timesteps (n,)."""
        every = sinusoidal_embedding(torch.arange(self.config.diffusion_steps, device=t.device), h.shape[1])
        return self.estimator(torch.cat((x_t, h, F.embedding(t, self.time(every))), dim=1))

    def add_positions(self, x: Tensor) -> Tensor:
        # As long as their noised states, which are read beside the history; SASRec multiplies by the root of d.
        return super().add_positions(self.noised_space(x) / self.config.embedding_size**0.5)

    # --- training ------------------------------------------------------------------------------------------

    def loss(self, batch: SequenceBatch) -> Tensor:
        config, batch = self.config, self.training_batch(batch)
        h = self.encode(self.noised(batch)).vectors
        x_0 = self.noised_space(self.item_embedding(batch.targets))
        t = torch.zeros_like(batch.targets)
        if config.diffusion:
            t = torch.randint(0, config.diffusion_steps, t.shape, device=t.device)
            dropped = condition_dropout(len(t), config.history_dropout, device=t.device)
            h = torch.where(dropped[:, None], self.no_history, h)
        wanted = self.error(x_0, h, t)
        losses = wanted
        if config.preference:
            margin = config.preference_scale * (wanted - self.error(self.centroids(x_0), h, t))
            weight = config.preference_weight
            losses = weight * wanted - (1 - weight) * F.logsigmoid(-margin)
        return losses.mean() * batch.rank_weight

    def centroids(self, x_0: Tensor) -> Tensor:
        """(n, d) for each target, the mean of the vectors of some others of the batch."""
        count = min(self.config.negatives or 1, max(len(x_0) - 1, 1))
        shifts = torch.randint(1, max(len(x_0), 2), (len(x_0), count), device=x_0.device)
        others = (torch.arange(len(x_0), device=x_0.device)[:, None] + shifts) % len(x_0)
        return F.embedding_bag(others, x_0, mode="mean")

    def error(self, x_0: Tensor, h: Tensor, t: Tensor) -> Tensor:
        """(n,) how far the estimates are from x_0 (n, d), noised to steps t."""
        x_t = q_sample(self.schedule, x_0, t, torch.randn_like(x_0)) if self.config.diffusion else torch.zeros_like(x_0)
        x0_hat = self.estimate(x_t, h, t)
        if self.config.error == "squared":
            return (x_0 - x0_hat).square().mean(1)
        return (1 - F.cosine_similarity(x_0, x0_hat, dim=1)).square()

    @torch.no_grad()
    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        if not self.config.diffusion:
            return []
        mean_square = self.item_embedding.mean_square(self.num_items, self.noised_space)
        return [noise_levels(self.schedule, "item vectors", mean_square, starts_from_noise=True)]

    # --- scoring -------------------------------------------------------------------------------------------

    @property
    def max_sampling_steps(self) -> int | None:
        return self.config.diffusion_steps if self.config.diffusion else None

    def network_passes(self, sampling: Sampling) -> int:
        return sampling.steps(self.config.sampling_steps, self.max_sampling_steps)

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        h = super().represent(items, lengths, sampling)
        if not self.config.diffusion:
            return self.estimate(torch.zeros_like(h), h, torch.zeros_like(lengths))
        noise = RowNoise(row_keys(items, lengths), sampling.seed, sampling.noise)
        network = classifier_free(
            lambda x_t, t: self.estimate(x_t, h, t),
            lambda x_t, t: self.estimate(x_t, self.no_history.expand_as(h), t),
            self.config.guidance,
        )

        def on_step(step: int, t: int, x_t: Tensor, x0_hat: Tensor) -> None:
            if sampling.on_step is not None:
                sampling.on_step(t, self.metric_space(x_t), self.metric_space(x0_hat))

        visited = space_timesteps(self.schedule.steps, str(self.network_passes(sampling)))
        return solver(self.config.solver)(
            lambda x_t, t: self.noised_space(network(x_t, t)),
            noise(h),
            self.schedule,
            visited,
            generator=noise,
            callback=on_step,
        )
