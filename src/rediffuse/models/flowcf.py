"""FlowCF: flow matching over a user's whole row of items (Liu et al., KDD 2025).

A discrete flow leads from a row x_0 in which each item is present with the share of the users that have it (the
*behaviour-guided prior*) to the user's row x_1. At time t each element of x_t is that of x_1 with probability t,
otherwise that of x_0, and a multilayer perceptron predicts x_1 from (x_t, t) by the squared error. At inference the
flow starts at the user's own row, and takes the last few of N steps along the velocity (x_1_hat - x_t) / (1 - t). An
element is on where its probability passes 1/2, and the user's own items stay on. Nothing is drawn at inference. The
last estimate of x_1 ranks the items.

Ablation (no diffusion): with ``diffusion=false`` x_t is the row itself, at the last time alone. That is an autoencoder
with dropout.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import binary_matrix, users_of_items
from rediffuse.batching.rows import RowBatch, RowBatches, row_batch
from rediffuse.config import NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.models.base import TrainingData
from rediffuse.models.prior import NeuralModel
from rediffuse.models.sampling import Sampling
from rediffuse.nn import Dropout, sinusoidal_embedding

_PAPER: dict[str, Any] = {"batch_size": 4096, "validate_every": 1}


class FlowCFConfig(NeuralConfig):
    """Options of FlowCF; the network and the steps are the paper's, the batches are smaller."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": _PAPER, "released": _PAPER}
    search: ClassVar = {
        "learning_rate": Range(1e-4, 5e-3, log=True),
        "dropout": Range(0.0, 0.7),
        "sampling_steps": (1, 2, 3),
    }

    metric: str = Field("ndcg@10/unseen", description="The one validation metric that selects.")
    batch_size: int = Field(100, ge=1, description="Users per optimiser step.")
    epochs: int = Field(500, ge=0, description="Upper bound; early stopping usually ends before it.")
    validate_every: int = Field(5, ge=1, description="Epochs between validations.")
    hidden_sizes: tuple[int, ...] = Field((300, 300), min_length=1, description="Widths of the hidden layers.")
    time_size: int = Field(10, ge=1, description="Width of the embedding of the time.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before each layer, the first included.")
    diffusion: bool = Field(True, description="False: the ablation (no diffusion).")
    diffusion_steps: int = Field(9, ge=1, description="N, the steps of the flow.")
    sampling_steps: int = Field(2, ge=1, description="How many of them are taken at inference, the last ones.")

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        if self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} is more than diffusion_steps={self.diffusion_steps}"
            )
        return self


class FlowCF(NeuralModel):
    """A flow from the popularity of items to a user's row, and a network that predicts where it ends.

    Attributes:
        frequency: (num_items,) share of the users that have each item.
    """

    name = "flowcf"
    Config = FlowCFConfig
    holds_users = False
    config: FlowCFConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    frequency: Tensor

    def __init__(self, config: FlowCFConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        widths = [num_items + config.time_size, *config.hidden_sizes, num_items]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.time = nn.Linear(config.time_size, config.time_size)
        self.drop = Dropout(config.dropout)
        for layer in (*self.layers, self.time):
            nn.init.xavier_normal_(layer.weight)  # pyright: ignore
            nn.init.zeros_(layer.bias)  # pyright: ignore
        self.register_buffer("frequency", torch.zeros(num_items))

    def hidden(self, x: Tensor, t: Tensor) -> Tensor:
        """(B, H) the input of the last layer, from rows (B, I) at times (B,) between 0 and 1."""
        time = self.time(sinusoidal_embedding(2 * math.pi * t, self.config.time_size))
        h = torch.cat((x, time), dim=1)
        for layer in self.layers[:-1]:
            h = torch.tanh(layer(self.drop(h)))
        return self.drop(h)

    # --- training ------------------------------------------------------------------------------------------

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        shares = users_of_items(data.train, self.num_items) / max(data.num_users, 1)
        self.frequency.copy_(torch.from_numpy(shares))

    def batches(self, data: TrainingData, rng: np.random.Generator) -> RowBatches:
        return RowBatches(binary_matrix(data.train, self.num_items), batch_size=self.config.batch_size, rng=rng)

    def loss(self, batch: RowBatch) -> Tensor:
        x_1, steps = batch.dense(self.num_items), self.config.diffusion_steps
        if self.config.diffusion:
            t = torch.randint(0, steps, (len(batch),), device=x_1.device) / steps
            x_t = self.interpolated(x_1, t)
        else:
            t, x_t = self.last_time(x_1), x_1
        return (x_1 - self.layers[-1](self.hidden(x_t, t))).square().mean() * batch.rank_weight

    def interpolated(self, x_1: Tensor, t: Tensor) -> Tensor:
        """x_t (B, I) of rows x_1 (B, I) at times t (B,): each element is that of x_1 with probability t."""
        x_0 = torch.bernoulli(self.frequency.expand_as(x_1))
        return torch.where(torch.rand_like(x_1) <= t[:, None], x_1, x_0)

    def last_time(self, x: Tensor) -> Tensor:
        """(B,) the time of the last step."""
        return torch.full((len(x),), 1 - 1 / self.config.diffusion_steps, device=x.device)

    # --- scoring -------------------------------------------------------------------------------------------

    @property
    def network_gives_logits(self) -> bool:
        return False  # they are estimates of zeros and ones

    @property
    def max_sampling_steps(self) -> int | None:
        return self.config.diffusion_steps if self.config.diffusion else None

    def network_passes(self, sampling: Sampling) -> int:
        return sampling.steps(self.config.sampling_steps, self.max_sampling_steps)

    def end_of_flow(self, histories: Histories, sampling: Sampling) -> Tensor:
        """(B, H) the input of the last layer at the last step of the flow from the rows of histories."""
        rows = row_batch(binary_matrix(histories, self.num_items)).to(self.frequency.device)
        x = observed = rows.dense(self.num_items)
        steps = self.config.diffusion_steps
        for step in range(steps - self.network_passes(sampling), steps - 1):
            t = step / steps
            h = self.hidden(x, torch.full((len(x),), t, device=x.device))
            if sampling.on_step is not None:
                sampling.on_step(steps - 1 - step, None, _with_one(h))
            velocity = (self.layers[-1](h) - x) / (1 - t)
            x = torch.maximum(observed, (x + velocity / steps > 0.5).float())
        h = self.hidden(x, self.last_time(x))
        if sampling.on_step is not None:
            sampling.on_step(0, None, _with_one(h))
        return h

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return self.layers[-1](self.end_of_flow(histories, sampling))

    def index_vectors(self) -> Tensor | None:
        """The last layer's weights, with its bias as one more column."""
        last = self.layers[-1]
        return torch.cat((last.weight, last.bias[:, None]), dim=1)  # pyright: ignore

    def query_vectors(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return _with_one(self.end_of_flow(histories, sampling))


def _with_one(h: Tensor) -> Tensor:
    """(B, H + 1) with a last column of ones, which the bias multiplies."""
    return F.pad(h, (0, 1), value=1.0)
