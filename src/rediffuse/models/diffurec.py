"""DiffuRec: a diffusion model for sequential recommendation (Li, Sun & Li, TOIS 2023, arXiv 2304.00686).

The embedding of the item to come is noised and a transformer, the *approximator*, that reads the history beside it
recovers it. At test the item to come starts as noise and is denoised step by step; the catalogue is ranked by inner
product with what comes out.

Two forms train the same network:

- ``prefix``, the paper's: one row per target. Every token i of the history carries z_i + lambda_i (x_t + e_t), the
  attention is bidirectional, and the last position is x0_hat.
- ``causal``: one row per history, all its positions at once. Token i carries the noised item i + 1 with its own
  timestep, the attention is causal, and position i is x0_hat of item i + 1. Position i sees x_t of items up to
  i + 1 through tokens up to i, of which only its own target (noised) is unknown at test.

With ``diffusion=false`` the tokens are z_i alone: the non-diffusion twin, the same network trained the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.config import Range
from rediffuse.diffusion import ancestral, noise_schedule, q_sample, solver, space_timesteps, timestep_sampler
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.models.sampling import Sampling
from rediffuse.models.sequence import Encoded, SequenceConfig, SequenceModel
from rediffuse.nn import Dropout, Encoder, sinusoidal_embedding
from rediffuse.nn.transformer import Cache

# The paper's network and training.
PAPER: dict[str, Any] = {
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
# The fewest steps are kept whose validation metric is within this share of the metric at all steps.
CALIBRATION_TOLERANCE = 0.005


class DiffuRecConfig(SequenceConfig):
    """Defaults chosen on validation data (docs/benchmarks.md)."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": PAPER,
        "released": PAPER | {"fidelity": "released", "variance": "fixed_large"},
    }
    search = SequenceConfig.search | {
        "blocks": Range(1, 3),
        "dropout": Range(0.1, 0.6),
        "embedding_dropout": Range(0.1, 0.6),
        "lambda_uncertainty": Range(1e-4, 1e-1, log=True),
        # These accept any number of steps; some others need more than 20.
        "noise_schedule": ("trunc_lin", "trunc_cos", "cosine", "sqrt"),
        "timestep_sampler": ("uniform", "lossaware"),
    }

    form: Literal["causal", "prefix"] = Field(
        "causal", description="causal: a history trains all its positions at once; prefix: one target per row."
    )
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.3, ge=0, lt=1)
    embedding_dropout: float = Field(0.3, ge=0, lt=1)
    embedding_std: float = Field(0.02, gt=0, description="Standard deviation of fresh item embeddings.")
    diffusion: bool = Field(True, description="False: the non-diffusion twin.")
    diffusion_steps: int = Field(32, ge=1, description="T, the steps of the noise schedule.")
    noise_schedule: str = "trunc_lin"
    timestep_sampler: Literal["uniform", "fixstep", "lossaware"] = "uniform"
    lambda_uncertainty: float = Field(0.001, ge=0, description="Mean and standard deviation of lambda.")
    solver: Literal["ancestral", "ddim", "dpmpp_2m", "one_step"] = "ancestral"
    variance: Literal["fixed_small", "fixed_large"] = Field("fixed_small", description="Of the ancestral solver.")
    sampling_steps: int | None = Field(None, ge=1, description="None: calibrated on validation data.")
    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: padding is attended to and is a class of the training loss, as in the authors' program.",
    )


class Approximator(nn.Module):
    """f(history, x_t, t) -> x0_hat: plain torch, for use in anyone's harness. Paper sections 4.1-4.3.

    Args:
        size: width d of item embeddings.
        steps: T; timesteps are rescaled to t * 1000 / T before they are embedded.
        blocks, heads, dropout: of the transformer.
        embedding_dropout: on the history before its LayerNorm.
        lambda_uncertainty: mean and standard deviation of the weight of x_t in each element of each token.
        causal: the causal form; otherwise the paper's.
        pads_are_keys: see `rediffuse.nn.Encoder`.
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
    ) -> None:
        super().__init__()
        self.size, self.steps, self.lambda_uncertainty = size, steps, lambda_uncertainty
        self.drop = Dropout(embedding_dropout)
        self.norm = nn.LayerNorm(size, eps=1e-12)
        self.time = nn.Sequential(nn.Linear(size, 4 * size), nn.SiLU(), nn.Linear(4 * size, size))
        self.encoder = Encoder(size, blocks, heads, dropout, causal=causal, pads_are_keys=pads_are_keys)

    def history(self, embedded: Tensor) -> Tensor:
        """z: the embedded history (B, L, d), dropped out and normalised."""
        return self.norm(self.drop(embedded))

    def embed_time(self, t: Tensor) -> Tensor:
        """e_t (..., d) of timesteps t (...). There are only T of them, so they are computed once and looked up."""
        every = torch.arange(self.steps, device=t.device) * (1000.0 / self.steps)
        return nn.functional.embedding(t, self.time(sinusoidal_embedding(every, self.size)))

    def condition(self, z: Tensor, x_t: Tensor, t: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """z + lambda (x_t + e_t), lambda ~ N(delta, delta) per element of z.

        Shapes: z (B, L, d); x_t (B, d) and t (B,) for one target per row, or (B, L, d) and (B, L) for one per token.
        """
        noised_target = x_t + self.embed_time(t)
        if noised_target.dim() < z.dim():
            noised_target = noised_target[:, None]
        weight = self.lambda_uncertainty * (1 + noise(z))
        return z + weight * noised_target

    def forward(self, z: Tensor, lengths: Tensor, x_t: Tensor, t: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
        """x0_hat (B, d) at the last real token of each row; arguments as in `condition`."""
        return self.encoder.last(self.condition(z, x_t, t, noise), lengths)

    def advance(
        self, last: Tensor, lengths: Tensor, cache: Cache, x_t: Tensor, t: Tensor, noise: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The same of the causal form: z (B, d) of each row's last token, against the cached tokens before it."""
        token = self.condition(last[:, None], x_t, t, noise).squeeze(1)
        return self.encoder.advance(token, lengths, cache)


class DiffuRec(SequenceModel):
    """DiffuRec in either form, or its non-diffusion twin."""

    name = "diffurec"
    Config = DiffuRecConfig
    config: DiffuRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DiffuRecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.causal = self.every_position = config.form == "causal"
        self.pads_are_read = config.fidelity == "released"
        self.approximator = Approximator(
            config.embedding_size,
            config.diffusion_steps,
            config.blocks,
            config.heads,
            config.dropout,
            config.embedding_dropout,
            config.lambda_uncertainty,
            causal=self.causal,
            pads_are_keys=self.pads_are_read,
        )
        nn.init.normal_(self.item_embedding.weight, std=config.embedding_std)
        self.schedule = noise_schedule(config.noise_schedule, steps=config.diffusion_steps)
        self.timesteps = timestep_sampler(config.timestep_sampler, steps=config.diffusion_steps)
        self.first_scale = self.schedule.alphas_cumprod[0].sqrt().item()  # of x_0 at the smallest timestep
        self.sampling_steps = config.sampling_steps or 1

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.config.diffusion

    def classes(self) -> Tensor:
        # The released code trains padding as a class.
        return self.item_embedding.weight if self.pads_are_read else super().classes()

    # --- learning ------------------------------------------------------------------------------------------

    def encode(self, batch: SequenceBatch) -> Encoded:
        items = self._full_width(batch.items)
        z = self.approximator.history(self.item_embedding(items))
        if not self.config.diffusion:
            return Encoded(self._read(z, batch))
        t, weights = self.timesteps.sample(len(batch.targets), device=items.device)
        x_0 = self.item_embedding(batch.targets)
        x_t = q_sample(self.schedule, x_0, t, torch.randn_like(x_0))
        if self.causal:
            # Scatter the targets' (n,) timesteps and (n, d) noised embeddings to the tokens that precede them.
            at = (batch.rows, batch.positions)
            x_t = torch.zeros_like(z).index_put(at, x_t.to(z.dtype))
            t_tokens = torch.zeros_like(items).index_put(at, t)
            tokens = self.approximator.condition(z, x_t, t_tokens, torch.randn_like)
        else:
            tokens = self.approximator.condition(z, x_t, t, torch.randn_like)
        uniform = self.config.timestep_sampler == "uniform"
        return Encoded(self._read(tokens, batch), None if uniform else weights, t)

    def _read(self, tokens: Tensor, batch: SequenceBatch) -> Tensor:
        if self.causal:
            return self.approximator.encoder(tokens, batch.lengths)[batch.rows, batch.positions]
        return self.approximator.encoder.last(tokens, batch.lengths)

    def _full_width(self, items: Tensor) -> Tensor:
        """Where padding is attended to, its amount matters: pad to the full window as the released code does."""
        if not self.pads_are_read:
            return items
        return nn.functional.pad(items, (0, self.config.max_length - items.shape[1]), value=self.pad)

    def update_timestep_sampler(self, timesteps: Tensor, losses: Tensor) -> None:
        self.timesteps.update(timesteps, losses)

    # --- answering -----------------------------------------------------------------------------------------

    @property
    def max_sampling_steps(self) -> int | None:
        return self.config.diffusion_steps if self.config.diffusion and self.config.solver != "one_step" else None

    def history(self, items: Tensor) -> Tensor:
        """z (B, L, d) of padded histories (B, L)."""
        return self.approximator.history(self.item_embedding(self._full_width(items)))

    def network_passes(self, sampling: Sampling) -> int:
        steps = min(sampling.sampling_steps or self.sampling_steps, self.config.diffusion_steps)
        return steps if self.max_sampling_steps is not None else 1

    def represent(self, items: Tensor, lengths: Tensor, sampling: Sampling) -> Tensor:
        z = self.history(items)
        if not self.config.diffusion:
            return self.approximator.encoder.last(z, lengths)
        noise = RowNoise(row_keys(items, lengths), sampling.seed, sampling.noise)
        network = self._continue_causally(items, z, lengths, noise) if self.causal else None

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return network(x_t, t) if network else self.approximator(z, lengths, x_t, t, noise)

        start = noise(z[:, 0])

        def tell(step: int, t: int, x_t: Tensor, x0_hat: Tensor) -> None:
            if sampling.on_step is not None:
                sampling.on_step(t, self.metric_space(x_t), self.metric_space(x0_hat))

        steps = self.network_passes(sampling)
        if steps == 1:
            return solver("one_step")(predict, start, self.schedule, callback=tell)
        kept = space_timesteps(self.config.diffusion_steps, str(steps))
        chain = self.schedule, kept
        if self.config.solver == "ancestral":
            variance = self.config.variance
            return ancestral(predict, start, *chain, generator=noise, callback=tell, variance=variance)
        return solver(self.config.solver)(predict, start, *chain, generator=noise, callback=tell)

    def _continue_causally(
        self, items: Tensor, z: Tensor, lengths: Tensor, noise: RowNoise
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """f(x_t, t) for the last token, with the keys and values of all earlier tokens computed once."""
        last, cache = self.earlier_tokens(items, z, lengths)

        def network(x_t: Tensor, t: Tensor) -> Tensor:
            return self.approximator.advance(last, lengths, cache, x_t, t, noise)

        return network

    def earlier_tokens(self, items: Tensor, z: Tensor, lengths: Tensor) -> tuple[Tensor, Cache]:
        """Of the causal form, what steps share: z (B, d) of each row's last token, and keys and values of the others.

        Earlier tokens carry the item that is known to follow them, at the smallest timestep and with the mean of
        lambda: nothing about them is left to chance.
        """
        approximator, rows = self.approximator, torch.arange(items.shape[0], device=items.device)
        clean = self.first_scale * self.item_embedding(torch.roll(items, -1, dims=1))
        first = approximator.embed_time(torch.zeros((), dtype=torch.int64, device=items.device))
        tokens = z + approximator.lambda_uncertainty * (clean + first)
        return z[rows, lengths - 1], approximator.encoder.prefill(tokens, lengths)

    def calibrate(self, validate: Callable[[], float]) -> dict[str, Any]:
        """Choose `sampling_steps`: the fewest whose validation metric is within 0.5 % of that of all T steps."""
        if not self.config.diffusion or self.config.sampling_steps is not None or self.config.solver == "one_step":
            return {}
        tried = sorted({1, 2, 4, 8, 16} & set(range(self.config.diffusion_steps)) | {self.config.diffusion_steps})
        curve: dict[int, float] = {}
        for steps in reversed(tried):
            self.sampling_steps = steps
            curve[steps] = validate()
        enough = curve[self.config.diffusion_steps] * (1 - CALIBRATION_TOLERANCE)
        chosen = min(steps for steps in tried if curve[steps] >= enough)
        return {"sampling_steps": chosen, "metric_by_steps": {str(n): curve[n] for n in tried}}

    def resolve(self, resolved: dict[str, Any]) -> None:
        self.sampling_steps = self.config.sampling_steps or resolved.get("sampling_steps", 1)
