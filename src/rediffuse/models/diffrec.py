"""DiffRec and T-DiffRec: diffusion over a user's whole row of items (Wang et al., SIGIR 2023, arXiv 2304.04971).

In training, a row x_0 of the users x items matrix is noised and a multilayer perceptron recovers it. At inference, the
reverse chain starts from the row itself, and the values in its empty cells rank the items. Nothing is drawn, and the
chain runs in the network's hidden space (`rediffuse.nn.RowDenoiser.reverse`). With ``noising_steps`` it starts from the
row after that many steps of noise, as in the paper; with ``sampling_noise`` each step draws noise.

T-DiffRec gives recent interactions more weight in the row (`rediffuse.batching.recency`): by their order, by time as
PDRec's TI-DiffRec does, or by a half-life.

Ablation (no diffusion): with ``diffusion=false`` the row goes through the same network once, without noise. That is a
denoising autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from rediffuse.batching.matrix import weighted_matrix
from rediffuse.batching.recency import BY_TIME, InputWeighting, check_weighting, interaction_weights
from rediffuse.batching.rows import RowBatch, RowBatches, row_batch
from rediffuse.batching.sequences import pad_right, rank_rows
from rediffuse.config import NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.diffusion import (
    NoiseLevels,
    NoiseSchedule,
    ancestral,
    at_timesteps,
    from_betas,
    noise_levels,
    noise_schedule,
    predict_x0,
    q_sample,
    snr_weights,
    timestep_sampler,
)
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.diffusion.solvers import Network
from rediffuse.models.base import TrainingData
from rediffuse.models.prior import NeuralModel
from rediffuse.models.sampling import Sampling
from rediffuse.nn import Folded, RowDenoiser

WEIGHTING = "Weight recent interactions more: none, order, interval, half_life_events or half_life_days."
# Released options that are the same for all data sets.
_RELEASED = {"metric": "recall@20/unseen", "patience": 4, "validate_every": 5, "weight_decay": 0.0}


class DiffRecConfig(NeuralConfig):
    """Options of DiffRec; the defaults are chosen on validation data (docs/benchmarks.md).

    The presets ``paper:NAME`` hold the released options for a data set.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _RELEASED,
        "released": _RELEASED | {"fidelity": "released"},
        "paper:amazon-book": _RELEASED
        | {"learning_rate": 5e-5, "hidden_sizes": (1000,), "diffusion_steps": 5}
        | {"noise_scale": 1e-4, "noise_min": 5e-4, "noise_max": 5e-3},
        "paper:yelp": _RELEASED
        | {"learning_rate": 1e-5, "hidden_sizes": (1000,), "diffusion_steps": 5}
        | {"noise_scale": 0.01, "noise_min": 1e-3, "noise_max": 0.01},
        "paper:ml-1m": _RELEASED
        | {"learning_rate": 1e-3, "hidden_sizes": (200, 600), "diffusion_steps": 40}
        | {"noise_scale": 5e-3, "noise_min": 5e-3, "noise_max": 0.01},
    }
    search: ClassVar = {
        "learning_rate": Range(1e-4, 5e-3, log=True),
        "diffusion_steps": (2, 5, 10, 40),
        "noise_scale": Range(1e-4, 1.0, log=True),
        "dropout": Range(0.2, 0.8),
    }

    batch_size: int = Field(400, ge=1, description="Users per optimiser step.")
    epochs: int = Field(1000, ge=0, description="Upper bound; early stopping usually ends before it.")
    learning_rate: float = Field(3e-4, gt=0)
    weight_decay: float = Field(1.0, ge=0, description="Decoupled (AdamW).")
    validate_every: int = Field(2, ge=1, description="Epochs between validations.")
    fidelity: Literal["corrected", "released"] = Field(
        "corrected", description="released: under weighting=order, a user's only interaction weighs weight_min."
    )
    hidden_sizes: tuple[int, ...] = Field(
        (200, 600), min_length=1, description="Widths from the narrowest outwards: items, 600, 200, 600, items."
    )
    time_size: int = Field(10, ge=1, description="Width of the embedding of the timestep.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout on the input row.")
    normalize: bool = Field(False, description="Scale the input row to length one; makes inference slower.")
    weighting: InputWeighting = Field("none", description=WEIGHTING)
    half_life: float = Field(10.0, gt=0, description="Of the weight, in interactions or days, by weighting.")
    weight_min: float = Field(
        0.1, ge=0, le=1, description="Weight of a user's oldest interaction; half-lives ignore it."
    )
    weight_max: float = Field(1.0, gt=0, description="Weight of a user's latest interaction.")
    diffusion: bool = Field(True, description="False: the ablation (no diffusion).")
    diffusion_steps: int = Field(5, ge=1, description="T, the steps of the noise schedule.")
    noise_schedule: Literal["linear_var", "linear_scaled", "cosine", "binomial"] = Field(
        "linear_var", description="cosine and binomial have no ends to set."
    )
    noise_scale: float = Field(0.01, gt=0, description="Factor of both ends of the schedule.")
    noise_min: float = Field(0.001, gt=0, description="1 - abar at the first step, before the factor.")
    noise_max: float = Field(0.01, gt=0, description="1 - abar at the last step, before the factor.")
    beta_fixed: bool = Field(True, description="Set the first beta to 1e-5, as released.")
    prediction: Literal["x0", "eps"] = Field("x0", description="What the network predicts; eps makes inference slower.")
    snr_weighting: bool = Field(True, description="Weight timesteps as the variational bound does.")
    timestep_sampler: Literal["lossaware", "uniform"] = "lossaware"
    noising_steps: int = Field(
        0, ge=0, description="T', steps of noise on a row before it is denoised in T; makes scores depend on the seed."
    )
    sampling_noise: bool = Field(
        False, description="Draw the noise of each denoising step; makes scores depend on the seed, and slower."
    )

    @model_validator(mode="after")
    def _noising_steps_exist(self) -> Self:
        if self.noising_steps > self.diffusion_steps:
            raise ValueError(f"noising_steps={self.noising_steps} is more than diffusion_steps={self.diffusion_steps}")
        if not self.diffusion and (self.noising_steps or self.sampling_noise):
            raise ValueError("diffusion=false has no noise; leave out noising_steps and sampling_noise")
        return self


# A learning rate that falls by 1 % after each epoch.
FALLS_BY_A_HUNDREDTH = {"learning_rate_decay_every": 1, "learning_rate_decay": 0.99}
# Released options of PDRec's TI-DiffRec that are the same for all data sets.
TI_DIFFREC = FALLS_BY_A_HUNDREDTH | {
    **{"weighting": "interval", "learning_rate": 5e-5, "weight_decay": 0.5, "validate_every": 1},
    **{"diffusion_steps": 10, "noise_scale": 0.01, "noise_min": 5e-4},
}


class TDiffRecConfig(DiffRecConfig):
    """DiffRec with weighted rows. ``paper:toys`` and ``paper:douban-book`` are PDRec's TI-DiffRec."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": DiffRecConfig.presets["paper"],
        "released": DiffRecConfig.presets["released"],
        "paper:amazon-book": DiffRecConfig.presets["paper:amazon-book"]
        | {"learning_rate": 1e-5, "diffusion_steps": 10, "noise_scale": 5e-4, "noise_min": 1e-3, "weight_min": 0.1},
        "paper:yelp": DiffRecConfig.presets["paper:yelp"] | {"noise_scale": 5e-3, "weight_min": 0.5},
        "paper:toys": TI_DIFFREC | {"weight_min": 0.5, "hidden_sizes": (1000,), "time_size": 10, "noise_max": 5e-3},
        "paper:douban-book": TI_DIFFREC
        | {"weight_min": 0.3, "hidden_sizes": (256,), "time_size": 8, "noise_max": 0.01},
    }

    weighting: InputWeighting = Field("order", description=WEIGHTING)


def row_schedule(config: DiffRecConfig) -> NoiseSchedule:
    """The noise schedule that the options describe."""
    ends = {"noise_scale": config.noise_scale, "noise_min": config.noise_min, "noise_max": config.noise_max}
    name, steps, fixed = config.noise_schedule, config.diffusion_steps, config.beta_fixed
    if name == "cosine":
        schedule = noise_schedule(name, steps)
        return from_betas([1e-5, *schedule.betas[1:].tolist()], name) if fixed else schedule
    return noise_schedule(name, steps, beta_fixed=fixed, **({} if name == "binomial" else ends))


class DiffRec(NeuralModel):
    """A network that removes noise from a user's whole row of interactions, and scores all items by what it restores.

    With ``diffusion=False`` it is the ablation, an autoencoder without noise steps.
    """

    name = "diffrec"
    Config = DiffRecConfig
    holds_users = False
    config: DiffRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    folded_weight: Tensor
    folded_bias: Tensor

    def __init__(self, config: DiffRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.schedule = row_schedule(config)
        steps = config.diffusion_steps if config.diffusion else 1
        self.denoiser = RowDenoiser(
            self.row_width(), config.hidden_sizes, config.time_size, steps, config.dropout, normalize=config.normalize
        )
        self.timesteps = timestep_sampler(config.timestep_sampler, steps)
        outer = config.hidden_sizes[-1]
        self.register_buffer("folded_weight", torch.zeros(outer, outer))
        self.register_buffer("folded_bias", torch.zeros(outer))

    @property
    def reads_times(self) -> bool:  # type: ignore[override]
        return self.config.weighting in BY_TIME

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return bool(self.config.noising_steps) or self.config.sampling_noise

    def row_width(self) -> int:
        """Width of the rows that are noised."""
        return self.num_items

    def rows(self, histories: Histories) -> Any:
        """The sparse weighted users x items matrix of histories; a repeated item has its latest weight."""
        config = self.config
        weights = interaction_weights(
            histories,
            config.weighting,
            weight_min=config.weight_min,
            weight_max=config.weight_max,
            half_life=config.half_life,
            released=config.fidelity == "released",
        )
        return weighted_matrix(histories, self.num_items, weights)

    # --- training ------------------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        check_weighting(self.config.weighting, data.train, data.has_timestamps, "weighting")

    def batches(self, data: TrainingData, rng: np.random.Generator) -> RowBatches:
        return RowBatches(self.rows(data.train), batch_size=self.config.batch_size, rng=rng)

    def loss(self, batch: RowBatch) -> Tensor:
        if not self.config.diffusion:
            once = torch.zeros(len(batch), dtype=torch.int64, device=batch.items.device)
            z = self.denoiser.read(batch.items, batch.offsets, batch.values)
            x_0_hat = self.denoiser.last(self.denoiser.inner(z, once, self.training_shift(batch)))
            return (batch.dense(self.row_width()) - x_0_hat).square().mean() * batch.rank_weight
        t, importance = self.timesteps.sample(len(batch), device=batch.items.device)
        x_0 = batch.dense(self.row_width())
        noise = torch.randn_like(x_0)
        x_t = q_sample(self.schedule, x_0, t, noise)
        output = self.denoiser(x_t, t, self.training_shift(batch)).float()
        losses = self.weighted_errors(x_0, x_t, noise, t, output)
        counted = rank_rows(batch.rank_weight)
        self.timesteps.update(t[counted], losses[counted])
        return (losses * importance).mean() * batch.rank_weight

    def training_shift(self, batch: RowBatch) -> Tensor | None:
        """(B, H) what a condition of the rows adds in the network's first layer; DiffRec has none."""
        return None

    def weighted_errors(self, x_0: Tensor, x_t: Tensor, noise: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """(B,) squared errors of the network's ``output`` at (x_t, t): means over items, weighted by timestep."""
        prediction = self.config.prediction
        target = x_0 if prediction == "x0" else noise
        errors = (target - output).square().mean(1)
        if not self.config.snr_weighting:
            return errors
        if prediction == "eps":
            # At t = 0 the bound has the likelihood of x_0 instead.
            x_0_hat = predict_x0(self.schedule, output, x_t, t, prediction)
            errors = torch.where(t == 0, (x_0 - x_0_hat).square().mean(1) / 2, errors)
        return errors * at_timesteps(snr_weights(self.schedule, prediction), t, errors)

    @torch.no_grad()
    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        if not self.config.diffusion:
            return []
        what, mean_square = self.noised(data)
        return [noise_levels(self.schedule, what, mean_square, starts_from_noise=False)]

    def noised(self, data: TrainingData) -> tuple[str, float]:
        """What is noised, and the mean square of its elements."""
        rows = self.rows(data.train)
        return "rows", float(np.square(rows.data, dtype=np.float64).sum() / max(rows.shape[0] * rows.shape[1], 1))

    # --- scoring -------------------------------------------------------------------------------------------

    @property
    def network_gives_logits(self) -> bool:
        return False  # they are estimates of zeros and ones

    @torch.no_grad()
    def prepare(self) -> None:
        folded = self.denoiser.fold()
        self.folded_weight.copy_(folded.weight)
        self.folded_bias.copy_(folded.bias)

    @property
    def in_hidden_space(self) -> bool:
        """Whether the reverse chain can run there exactly, see `RowDenoiser.reverse`."""
        return self.config.prediction == "x0" and not self.config.normalize and not self.config.sampling_noise

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        if self.in_hidden_space:
            return self.denoiser.last(self.hidden(histories, sampling))
        rows = row_batch(self.rows(histories)).to(self.folded_bias.device)
        network = self.with_guidance(self.denoiser, rows, sampling)
        return self.plain_chain(rows.dense(self.row_width()), self.row_noise(histories, sampling), network)

    def with_guidance(self, network: Callable[..., Tensor], rows: RowBatch, sampling: Sampling) -> Network:
        """The denoiser, or its inner part, as a condition of ``rows`` guides it; DiffRec has none.

        Args:
            network: called as network(x, t, shift), see `RowDenoiser.inner`.
            rows: what is denoised.
            sampling: options of the guidance.
        """
        return network

    def row_noise(self, histories: Histories, sampling: Sampling) -> RowNoise | None:
        """The noise of these rows, each of which depends on its history and the seed alone; None: nothing is drawn."""
        if not self.stochastic:
            return None
        keys = row_keys(*pad_right(histories, max(int(histories.lengths.max(initial=1)), 1), self.num_items))
        return RowNoise(keys.to(self.folded_bias.device), sampling.seed, sampling.noise)

    def hidden(self, histories: Histories, sampling: Sampling) -> Tensor:
        """(B, H) the input of the last layer, which gives the scores."""
        rows = row_batch(self.rows(histories)).to(self.folded_bias.device)
        callback = sampling.on_step

        def on_step(t: int, g: Tensor) -> None:
            if callback is not None:
                callback(t, None, _with_one(g))

        z, noise = self.denoiser.read(rows.items, rows.offsets, rows.values), self.row_noise(histories, sampling)
        if noise is not None:  # of whole rows, which W maps to hidden space as it does x_0
            z = self.noised_start(z, noise(z.new_empty(len(z), self.row_width())) @ self.denoiser.first)
        return self.reverse(z, on_step, self.with_guidance(self.denoiser.inner, rows, sampling))

    def index_vectors(self) -> Tensor | None:
        """The last layer's weights, with its bias as one more column."""
        if not self.in_hidden_space:
            return None
        return torch.cat((self.denoiser.last.weight, self.denoiser.last.bias[:, None]), dim=1)

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return _with_one(self.hidden(histories, sampling))

    def reverse(
        self, z: Tensor, on_step: Callable[[int, Tensor], None] | None = None, inner: Network | None = None
    ) -> Tensor:
        """The reverse chain in hidden space, from z = W x_T (B, H) to g (B, H), the input of the last layer."""
        folded = Folded(self.folded_weight, self.folded_bias)
        schedule = self.schedule
        return self.denoiser.reverse(
            z, folded, schedule.posterior_mean_coef1.tolist(), schedule.posterior_mean_coef2.tolist(), on_step, inner
        )

    def noised_start(self, x: Tensor, noise: Tensor) -> Tensor:
        """What the reverse chain starts from: ``x`` (B, ...) after `noising_steps` steps of noise."""
        if not self.config.noising_steps:
            return x
        t = torch.full((len(x),), self.config.noising_steps - 1, dtype=torch.int64, device=x.device)
        return q_sample(self.schedule, x, t, noise)

    def plain_chain(self, x: Tensor, noise: RowNoise | None = None, network: Network | None = None) -> Tensor:
        """The reverse chain from rows (B, I) to x_0_hat (B, I), in T passes over whole rows; for any network."""
        network = network or self.denoiser
        if not self.config.diffusion:
            return network(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))
        if noise is not None and self.config.noising_steps:
            x = self.noised_start(x, noise(x))
        # Without sampling_noise every step takes the mean.
        variance = "fixed_small" if self.config.sampling_noise else None
        chain = {"prediction": self.config.prediction, "generator": noise, "variance": variance}
        return ancestral(network, x, self.schedule, **chain)


def _with_one(g: Tensor) -> Tensor:
    """(B, H + 1) with a last column of ones, which the bias multiplies."""
    return torch.cat((g, g.new_ones(len(g), 1)), dim=1)


class TDiffRec(DiffRec):
    """DiffRec on rows that give recent interactions more weight: T-DiffRec and TI-DiffRec."""

    name = "tdiffrec"
    Config = TDiffRecConfig
