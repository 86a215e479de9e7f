"""DiffuRec: a diffusion model for sequential recommendation (Li, Sun & Li, TOIS 2023, arXiv 2304.00686).

In training, the embedding of the next item is noised, and a transformer that reads the history (the *approximator*)
recovers it. At inference, the next item starts as noise and is denoised step by step; items are ranked by their inner
product with the result.

Two forms train the same network:

- ``prefix``, the paper's: one target per row. Every token i of the history carries z_i + lambda_i (x_t + e_t), the
  attention is bidirectional, and the output at the last position is x0_hat.
- ``causal``: one history per row, with a target at every position. Token i carries item i + 1, noised with a timestep
  of its own, the attention is causal, and the output at position i is x0_hat of item i + 1. Position i sees x_t of
  items up to i + 1, of which only the last, its own target, is unknown at inference.

What is noised is the vector of the next item, scaled to rms 1 like the noise; the paper noises the rows of the item
table (``normalize=false``). Options add self-conditioning (Chen, Zhang & Hinton, ICLR 2023, arXiv 2208.04202),
classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), and gated blocks (`rediffuse.nn.transformer.Block`).

With ``diffusion=false`` the tokens are z_i alone. This is the ablation (no diffusion): the same network, trained the
same way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from rediffuse.batching.sequences import SequenceBatch, pad_right
from rediffuse.config import Range
from rediffuse.diffusion import (
    NoiseLevels,
    ancestral,
    condition_dropout,
    noise_levels,
    noise_schedule,
    q_sample,
    solver,
    space_log_snr,
    space_timesteps,
    timestep_sampler,
)
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.models.base import TrainingData, Validation
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import ESASREC, Encoded, SequenceConfig, SequenceModel
from rediffuse.nn import Dropout, Encoder, sinusoidal_embedding
from rediffuse.nn.transformer import Cache

# The paper's network and training.
PAPER: dict[str, Any] = {
    "item_features": False,
    "normalize": False,
    "noise_schedule": "trunc_lin",
    "lambda_uncertainty": 0.001,
    "form": "prefix",
    "blocks": 4,
    "heads": 4,
    "dropout": 0.1,
    "embedding_dropout": 0.3,
    "embedding_std": 1.0,
    "batch_size": 512,
    "epochs": 500,
    "weight_decay": 0.0,
    "learning_rate": 1e-3,
    "learning_rate_decay_every": 100,
    "repeat_bias": False,
    "temperature": None,
    "validate_every": 5,
    "patience": 20,
}
# Calibration chooses the fewest steps whose validation metric is within this share of the metric at all steps.
CALIBRATION_TOLERANCE = 0.005
# Options that have no effect without diffusion, although they would change the model.
_OF_DIFFUSION = ("self_conditioning", "history_dropout", "guidance")
# Training histories whose x0_hat is measured after training.
MEASURED_ROWS = 64


class DiffuRecConfig(SequenceConfig):
    """Options of DiffuRec. The defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": PAPER,
        "released": PAPER
        | {"fidelity": "released", "variance": "fixed_large", "sampling_steps": 32, "precision": "fp32"}
        | {"validate_every": 20, "patience": 5},
        "esasrec": ESASREC | {"embedding_dropout": 0.2},
    }
    search = SequenceConfig.search | {
        "blocks": Range(1, 3),
        "dropout": Range(0.1, 0.6),
        "embedding_dropout": Range(0.1, 0.6),
        "lambda_uncertainty": Range(1e-3, 1.0, log=True),
        # These schedules accept any number of steps; some others need more than 20.
        "noise_schedule": ("trunc_lin", "trunc_cos", "cosine", "sqrt"),
        "timestep_sampler": ("uniform", "lossaware"),
    }

    form: Literal["causal", "prefix"] = Field(
        "causal", description="causal: every position of a history is a target; prefix: one target per row."
    )
    blocks: int = Field(2, ge=1)
    block: Literal["standard", "ligr"] = Field("standard", description="ligr: gated residuals and SwiGLU.")
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    embedding_dropout: float = Field(0.3, ge=0, lt=1)
    embedding_std: float = Field(0.02, gt=0, description="Standard deviation of new item embeddings.")
    diffusion: bool = Field(True, description="False: the ablation (no diffusion).")
    diffusion_steps: int = Field(32, ge=1, description="T, the steps of the noise schedule.")
    noise_schedule: str = "cosine"
    timestep_sampler: Literal["uniform", "fixstep", "lossaware"] = "uniform"
    lambda_uncertainty: float = Field(0.01, ge=0, description="Mean and standard deviation of lambda.")
    normalize: bool = Field(
        True, description="Noise item vectors of rms 1, as long as the noise; false: the rows of the item table."
    )
    self_conditioning: bool = Field(False, description="The network also reads its estimate of the step before.")
    history_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the targets that are denoised without a history. Needed for guidance."
    )
    guidance: float = Field(0.0, ge=0, description="Weight of classifier-free guidance at inference.")
    solver: Literal["ancestral", "ddim", "dpmpp_2m", "one_step"] = "ancestral"
    variance: Literal["fixed_small", "fixed_large"] = Field(
        "fixed_small", description="Variance of the ancestral solver."
    )
    sampling_steps: int | None = Field(None, ge=1, description="None: calibrated on validation data.")
    spacing: Literal["even", "log_snr"] = Field(
        "even", description="Which timesteps fewer steps visit: even in t, or in the logarithm of the SNR."
    )
    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: padding is attended to and is a class of the training loss, the transformer begins "
        "with Xavier's normal weights, and batches are random, as in the authors' program.",
    )

    @model_validator(mode="after")
    def _guidance_has_what_it_needs(self) -> Self:
        if self.guidance and not self.history_dropout:
            raise ConfigError(
                f"guidance={self.guidance:g} needs a network that can denoise without a history, and history_dropout "
                "is 0: it would not be trained to.",
                "Set history_dropout too, for example 0.1; or guidance=0.",
            )
        return self


class Approximator(nn.Module):
    """The network f(history, x_t, t) -> x0_hat (paper, sections 4.1-4.3), in plain torch for use in other programs.

    Args:
        size: width d of item embeddings.
        steps: T; timesteps are rescaled to t * 1000 / T before they are embedded.
        blocks, heads, dropout: of the transformer.
        embedding_dropout: dropout on the embedded history, before its LayerNorm.
        lambda_uncertainty: mean and standard deviation of lambda, the weight of x_t in each element of a token.
        causal: the causal form; otherwise the prefix form.
        pads_are_keys: see `rediffuse.nn.Encoder`.
        self_conditioning: whether tokens also carry an earlier estimate of x_0 (Chen, Zhang & Hinton, ICLR 2023).
        unconditional: whether it can denoise without a history (Ho & Salimans 2022).
        gated: blocks of LiGR, see `rediffuse.nn.transformer.Block`.
    """

    def __init__(
        self,
        size: int,
        steps: int,
        blocks: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        embedding_dropout: float = 0.3,
        lambda_uncertainty: float = 0.001,
        *,
        causal: bool = False,
        pads_are_keys: bool = False,
        self_conditioning: bool = False,
        unconditional: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.size, self.steps, self.lambda_uncertainty = size, steps, lambda_uncertainty
        self.drop = Dropout(embedding_dropout)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.time = nn.Sequential(nn.Linear(size, 4 * size), nn.SiLU(), nn.Linear(4 * size, size))
        self.encoder = Encoder(size, blocks, heads, dropout, causal=causal, pads_are_keys=pads_are_keys, gated=gated)
        self.earlier = nn.Linear(size, size, bias=False) if self_conditioning else None
        self.no_history = nn.Parameter(torch.zeros(size)) if unconditional else None

    def history(self, embedded: Tensor) -> Tensor:
        """z (B, L, d): the embedded history (B, L, d) after dropout and LayerNorm."""
        return self.norm(self.drop(embedded))

    def embed_time(self, t: Tensor) -> Tensor:
        """e_t (..., d) of timesteps t (...). The embeddings of all T timesteps are computed once and looked up."""
        timesteps = torch.arange(self.steps, device=t.device) * (1000.0 / self.steps)
        return nn.functional.embedding(t, self.time(sinusoidal_embedding(timesteps, self.size)))

    def condition(
        self,
        z: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Callable[[Tensor], Tensor],
        earlier: Tensor | None = None,
    ) -> Tensor:
        """The tokens z + lambda (x_t + e_t), with lambda ~ N(delta, delta) for each element of z.

        Args:
            z: (B, L, d) from `history`.
            x_t, t: (B, d) and (B,) for one target per row, or (B, L, d) and (B, L) for one per token.
            noise: draws standard normal noise of the shape of its argument.
            earlier: as x_t, an earlier estimate of x_0, with self-conditioning; None: none yet.
        """
        noised_target = x_t + self.embed_time(t)
        if self.earlier is not None and earlier is not None:
            noised_target = noised_target + self.earlier(earlier)
        if noised_target.dim() < z.dim():
            noised_target = noised_target[:, None]
        weight = self.lambda_uncertainty * (1 + noise(z))
        return z + weight * noised_target

    def forward(
        self,
        z: Tensor,
        lengths: Tensor,
        x_t: Tensor,
        t: Tensor,
        noise: Callable[[Tensor], Tensor],
        earlier: Tensor | None = None,
    ) -> Tensor:
        """x0_hat (B, d) at the last real token of each row; other arguments as for `condition`."""
        return self.encoder.last(self.condition(z, x_t, t, noise, earlier), lengths)

    def advance(
        self,
        last: Tensor,
        lengths: Tensor,
        cache: Cache,
        x_t: Tensor,
        t: Tensor,
        noise: Callable[[Tensor], Tensor],
        earlier: Tensor | None = None,
    ) -> Tensor:
        """`forward` of the causal form, from z (B, d) of each row's last token and the cache of the others."""
        token = self.condition(last[:, None], x_t, t, noise, earlier).squeeze(1)
        return self.encoder.advance(token, lengths, cache)

    def without_history(self, x_t: Tensor, t: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """x0_hat (n, d) of noised targets alone. One learned token stands for the history; no earlier estimate is read,
        because that knows the history."""
        assert self.no_history is not None
        return self(self.no_history.expand(x_t.shape[0], 1, -1), torch.ones_like(t), x_t, t, noise)


class DiffuRec(SequenceModel):
    """A transformer that denoises the vector of the next item, given the latest items of the user.

    Both forms, and the ablation (no diffusion).
    """

    name = "diffurec"
    Config = DiffuRecConfig
    config: DiffuRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DiffuRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.causal = self.every_position = config.form == "causal"
        self.pads_are_keys = config.fidelity == "released"
        # With padding to the whole window, batches of similar lengths would save nothing.
        self.buckets_by_length = not self.pads_are_keys
        self.approximator = Approximator(
            config.embedding_size,
            config.diffusion_steps,
            config.blocks,
            config.heads,
            config.dropout,
            config.embedding_dropout,
            config.lambda_uncertainty,
            causal=self.causal,
            pads_are_keys=self.pads_are_keys,
            self_conditioning=config.diffusion and config.self_conditioning,
            unconditional=config.diffusion and config.history_dropout > 0,
            gated=config.block == "ligr",
        )
        self.item_embedding.initialise(std=config.embedding_std)
        if config.fidelity == "released":  # those layers of the transformer that the authors' program initialises
            for block in self.approximator.encoder.blocks:
                for layer in (block.out, block.expand, block.contract):
                    nn.init.xavier_normal_(layer.weight)  # pyright: ignore
        self.schedule = noise_schedule(config.noise_schedule, steps=config.diffusion_steps)
        self.timesteps = timestep_sampler(config.timestep_sampler, steps=config.diffusion_steps)
        self.first_scale = self.schedule.alphas_cumprod[0].sqrt().item()  # of x_0 at the smallest timestep
        self.sampling_steps = config.sampling_steps or 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.config.diffusion

    def classes(self) -> Tensor:
        # In the released program, padding is a class of the training loss.
        return self.item_embedding.all() if self.config.fidelity == "released" else super().classes()

    # --- training ------------------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        super().check(data)
        options, fields = self.config, type(self.config).model_fields
        unused = [name for name in _OF_DIFFUSION if getattr(options, name) != fields[name].get_default()]
        if unused and not options.diffusion:
            said = ", ".join(f"{name}={str(getattr(options, name)).lower()}" for name in unused)
            warnings.warn(f"Without diffusion, {said} changes nothing.", RediffuseWarning, stacklevel=2)

    def encode(self, batch: SequenceBatch) -> Encoded:
        items = self._full_width(batch.items)
        z = self.approximator.history(self.item_embedding(items))
        if not self.config.diffusion:
            return Encoded(self._at_targets(z, batch))
        t, weights = self.timesteps.sample(len(batch.targets), device=items.device)
        x_0 = self.noised_space(self.item_embedding(batch.targets))
        noise = torch.randn_like(x_0)
        # Where no item follows (PDRec's open ends), there is no x_0: the state is that in which inference starts.
        known = batch.targets < self.num_items
        t, weights = torch.where(known, t, self.schedule.steps - 1), torch.where(known, weights, 1.0)
        x_t = torch.where(known[:, None], q_sample(self.schedule, x_0, t, noise), noise)
        estimate = self._earlier_estimate(z, batch, x_t, t) if self.config.self_conditioning else None
        vectors = self._denoise(z, batch, x_t, t, estimate)
        if self.config.history_dropout:
            dropped = condition_dropout(len(t), self.config.history_dropout, device=t.device).nonzero().squeeze(1)
            alone = self.approximator.without_history(x_t[dropped], t[dropped], torch.randn_like)
            vectors = vectors.index_put((dropped,), alone.to(vectors.dtype))
        uniform = self.config.timestep_sampler == "uniform"
        return Encoded(self.noised_space(vectors), None if uniform else weights, t)

    def _earlier_estimate(self, z: Tensor, batch: SequenceBatch, x_t: Tensor, t: Tensor) -> Tensor:
        """(n, d) what self-conditioning reads: an estimate for half of the targets, as after the first step of a chain,
        and zeros for the others, as in the first (Chen, Zhang & Hinton 2023, algorithm 1)."""
        with torch.no_grad():
            estimate = self.noised_space(self._denoise(z, batch, x_t, t, None))
        return estimate * (torch.rand(len(t), 1, device=t.device) < 0.5)

    def noised_space(self, x: Tensor) -> Tensor:
        """Vectors (..., d) of items, or estimates of them, in the space in which noise is added: of rms 1, or unchanged
        with ``normalize=false``."""
        return nn.functional.normalize(x, dim=-1) * self.config.embedding_size**0.5 if self.config.normalize else x

    def _denoise(self, z: Tensor, batch: SequenceBatch, x_t: Tensor, t: Tensor, estimate: Tensor | None) -> Tensor:
        """(n, d) x0_hat of the targets of a batch, from their states x_t (n, d) and timesteps (n,)."""
        if self.causal:
            # Scatter what belongs to the targets to the tokens before them.
            positions = (batch.rows, batch.positions)
            t = torch.zeros(z.shape[:2], dtype=t.dtype, device=t.device).index_put(positions, t)
            x_t = torch.zeros_like(z).index_put(positions, x_t.to(z.dtype))
            estimate = None if estimate is None else torch.zeros_like(z).index_put(positions, estimate.to(z.dtype))
        return self._at_targets(self.approximator.condition(z, x_t, t, torch.randn_like, estimate), batch)

    def _at_targets(self, tokens: Tensor, batch: SequenceBatch) -> Tensor:
        """(n, d) the transformer's output at the position of each target."""
        if self.causal:
            return self.approximator.encoder(tokens, batch.lengths)[batch.rows, batch.positions]
        return self.approximator.encoder.last(tokens, batch.lengths)

    def _full_width(self, items: Tensor) -> Tensor:
        """The histories, padded to the whole window if padding is attended to, since its amount then matters."""
        if not self.pads_are_keys:
            return items
        return nn.functional.pad(items, (0, self.config.max_length - items.shape[1]), value=self.pad)

    @torch.no_grad()
    def noise_levels(self, data: TrainingData) -> list[NoiseLevels]:
        if not self.config.diffusion:
            return []
        rows = data.train.take(np.flatnonzero(data.train.lengths)[:MEASURED_ROWS])
        estimate, table = None, self.item_embedding
        items, lengths = (x.to(table.device) for x in pad_right(rows, self.config.max_length, self.pad))
        table.fetch(items)
        if len(rows):
            estimate = float(self.represent(items, lengths, Sampling()).float().square().mean())
        mean_square = table.mean_square(self.num_items, self.noised_space)
        return [
            noise_levels(
                self.schedule,
                "item vectors",
                mean_square,
                starts_from_noise=True,
                estimate_mean_square=estimate,
            )
        ]

    def update_timestep_sampler(self, timesteps: Tensor, losses: Tensor) -> None:
        self.timesteps.update(timesteps, losses)

    # --- scoring -------------------------------------------------------------------------------------------

    @property
    def max_sampling_steps(self) -> int | None:
        return self.config.diffusion_steps if self.config.diffusion and self.config.solver != "one_step" else None

    def history(self, items: Tensor) -> Tensor:
        """z (B, L, d) of padded histories (B, L)."""
        return self.approximator.history(self.item_embedding(self._full_width(items)))

    def network_passes(self, sampling: Sampling) -> int:
        return sampling.steps(self.sampling_steps, self.max_sampling_steps)

    def visited_timesteps(self, steps: int) -> list[int]:
        """The timesteps of a chain of ``steps`` steps, ascending."""
        if self.config.spacing == "log_snr":
            return space_log_snr(self.schedule, steps)
        return space_timesteps(self.schedule.steps, str(steps))

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        z = self.history(items)
        if not self.config.diffusion:
            return self.approximator.encoder.last(z, lengths)
        noise = RowNoise(row_keys(items, lengths), sampling.seed, sampling.noise)

        def whole_history(x_t: Tensor, t: Tensor, estimate: Tensor | None) -> Tensor:
            return self.approximator(z, lengths, x_t, t, noise, estimate)

        def on_step(step: int, t: int, x_t: Tensor, x0_hat: Tensor) -> None:
            if sampling.on_step is not None:
                sampling.on_step(t, self.metric_space(x_t), self.metric_space(x0_hat))

        network = self._last_token_only(items, z, lengths, noise) if self.causal else whole_history
        estimate: Tensor | None = None

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            nonlocal estimate
            x0_hat = self.guided(network(x_t, t, estimate), x_t, t, noise)
            estimate = x0_hat if self.config.self_conditioning else None
            return x0_hat

        start = noise(z[:, 0])
        steps = self.network_passes(sampling)
        if steps == 1:
            return solver("one_step")(predict, start, self.schedule, callback=on_step)
        chain = self.schedule, self.visited_timesteps(steps)
        if self.config.solver == "ancestral":
            variance = self.config.variance
            return ancestral(predict, start, *chain, generator=noise, callback=on_step, variance=variance)
        return solver(self.config.solver)(predict, start, *chain, generator=noise, callback=on_step)

    def _last_token_only(
        self, items: Tensor, z: Tensor, lengths: Tensor, noise: RowNoise
    ) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """The network f(x_t, t, earlier estimate); it reads the last token, and the others from a cache."""
        last, cache = self.earlier_tokens(items, z, lengths)

        def network(x_t: Tensor, t: Tensor, estimate: Tensor | None) -> Tensor:
            return self.approximator.advance(last, lengths, cache, x_t, t, noise, estimate)

        return network

    def guided(self, x0_hat: Tensor, x_t: Tensor, t: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """What a step of the chain takes for x_0 (B, d): x0_hat in the space of the noise, and away from what the
        network says without the history, (1 + s) x0_hat - s alone (Ho & Salimans 2022, eq. 6)."""
        x0_hat, scale = self.noised_space(x0_hat), self.config.guidance
        if not scale:
            return x0_hat
        alone = self.noised_space(self.approximator.without_history(x_t, t, noise))
        return self.noised_space((1 + scale) * x0_hat - scale * alone)

    def earlier_tokens(self, items: Tensor, z: Tensor, lengths: Tensor) -> tuple[Tensor, Cache]:
        """What all steps of the causal form share: z (B, d) of each row's last token, and a cache of the others.

        Earlier tokens carry the item that is known to follow them, at the smallest timestep and with the mean of
        lambda, so that they hold no noise.
        """
        approximator, rows = self.approximator, torch.arange(items.shape[0], device=items.device)
        clean = self.first_scale * self.noised_space(self.item_embedding(torch.roll(items, -1, dims=1)))
        first = approximator.embed_time(torch.zeros((), dtype=torch.int64, device=items.device))
        tokens = z + approximator.lambda_uncertainty * (clean + first)
        return z[rows, lengths - 1], approximator.encoder.prefill(tokens, lengths)

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Choose `sampling_steps`: the fewest steps whose validation metric is within 0.5 % of that of all T steps."""
        if not self.config.diffusion or self.config.sampling_steps is not None or self.config.solver == "one_step":
            return super().calibrate(validate)
        tried = sorted({1, 2, 4, 8, 16} & set(range(self.config.diffusion_steps)) | {self.config.diffusion_steps})
        curve: dict[int, float] = {}
        for steps in reversed(tried):
            self.sampling_steps = steps
            curve[steps] = validate()
        enough = curve[self.config.diffusion_steps] * (1 - CALIBRATION_TOLERANCE)
        chosen = min(steps for steps in tried if curve[steps] >= enough)
        self.sampling_steps = chosen
        found = {"sampling_steps": chosen, "metric_by_steps": {str(n): curve[n] for n in tried}}
        return found | super().calibrate(validate)

    def resolve(self, resolved: dict[str, Any]) -> None:
        super().resolve(resolved)
        self.sampling_steps = self.config.sampling_steps or resolved.get("sampling_steps", 1)
