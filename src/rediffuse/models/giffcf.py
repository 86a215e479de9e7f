"""GiffCF: diffusion of a user's row over the item graph (Zhu, Wang, Zhang & Xiong, SIGIR 2024, arXiv 2311.08744).

A = R_hat' R_hat / lambda_max, with R_hat = D_u^-1/4 R D_i^-1/2, smooths a row of the users x items matrix. The forward
process blurs x towards alpha (A x) + (1 - alpha) x in T steps:

    F_t(x) = x + alpha (t / T) (A x - x)

A network with tied item vectors E estimates x from z_t = F_t(x), and reads the row twice more: c, with dropout in
training, and A c.

    u     = mix(z_t E / |I|, c E / max(|c|_1, 1), t)        mix: two small layers, applied to each element alike
    x_hat = mix(u E', c, A c, t)

The loss is the squared error |x - x_hat|^2. At inference, the chain starts from F_T of the user's row and goes
z_s = F_s(x_hat) + delta^(t - s) (z_t - F_t(x_hat)); z_0 ranks the items. Nothing is drawn: the paper found that noise
does not help.

Ablation (no diffusion): with ``diffusion=false`` the network reads the row itself in place of z_t, and answers once.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import binary_matrix
from rediffuse.batching.rows import RowBatch, RowBatches, row_batch
from rediffuse.config import NeuralConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.graphs.item_graph import power, scaled, singular_vectors
from rediffuse.models.base import TrainingData
from rediffuse.models.prior import NeuralModel
from rediffuse.models.sampling import Sampling
from rediffuse.nn import Dropout, sinusoidal_embedding
from rediffuse.nn.sparse import SparseMatrix

TIME_SIZE, MIX_SIZE = 20, 2  # as released, not named in the paper
_PAPER: dict[str, Any] = {"metric": "recall@20/unseen", "epochs": 1000, "validate_every": 10, "patience": 20}
_PAPER |= {"batch_size": 100, "learning_rate": 1e-3}


class GiffCFConfig(NeuralConfig):
    """Options of GiffCF. The preset ``paper`` is that of MovieLens-1M; the network and the blur are those of the
    default."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": _PAPER, "released": _PAPER}
    search: ClassVar = {
        "learning_rate": Range(1e-4, 5e-3, log=True),
        "alpha": (0.5, 1.0, 1.5, 2.0),
        "diffusion_steps": (1, 3, 5),
    }

    metric: str = Field("ndcg@10/unseen", description="The one validation metric that selects.")
    batch_size: int = Field(25, ge=1, description="Users per optimiser step.")
    epochs: int = Field(200, ge=0, description="Upper bound; early stopping usually ends before it.")
    learning_rate: float = Field(3e-3, gt=0)
    validate_every: int = Field(3, ge=1, description="Epochs between validations.")
    embedding_size: int = Field(200, ge=1, description="Width of the item vectors E.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout on the row that conditions the network.")
    diffusion: bool = Field(True, description="False: the ablation (no diffusion).")
    diffusion_steps: int = Field(3, ge=1, description="T, the steps of the blur.")
    alpha: float = Field(1.5, gt=0, description="Strength of the blur.")
    noise_decay: float = Field(0.5, ge=0, le=1, description="delta: how much of z_t - F_t(x_hat) a step keeps.")


class Mixer(nn.Module):
    """Two small layers over k numbers, applied to each element of k arrays alike: (..., k) -> (...)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, MIX_SIZE), nn.Linear(MIX_SIZE, 1)
        for layer in (self.inner, self.outer):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, *arrays: Tensor) -> Tensor:
        """Arrays (B, n), or (B, 1) for one number per row."""
        weights, bias = self.inner.weight, self.inner.bias
        mixed = self.outer.bias.expand(1)
        # Without stacking: an array of k times the size would be written and read again.
        for unit in range(MIX_SIZE):
            total = bias[unit].expand(1, 1)
            for number, array in enumerate(arrays):
                total = total + weights[unit, number] * array
            mixed = mixed + self.outer.weight[0, unit] * F.silu(total)
        return mixed


class GiffCF(NeuralModel):
    """A user's row diffuses over the item graph, and a network sharpens it again.

    It holds the training interactions, normalised, as a sparse matrix, by user and by item.
    """

    name = "giffcf"
    Config = GiffCFConfig
    config: GiffCFConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: GiffCFConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        # R_hat / sqrt(lambda_max), and its transpose
        self.by_user, self.by_item = SparseMatrix(num_users, num_items), SparseMatrix(num_items, num_users)
        self.item_embedding = nn.Parameter(torch.empty(num_items, config.embedding_size))
        nn.init.xavier_uniform_(self.item_embedding)
        self.times = nn.ModuleList(
            nn.Sequential(nn.Linear(TIME_SIZE, TIME_SIZE), nn.SiLU(), nn.Linear(TIME_SIZE, 1)) for _ in range(2)
        )
        self.inner_mixer, self.outer_mixer = Mixer(3), Mixer(4)
        self.drop = Dropout(config.dropout)

    # --- the forward process -------------------------------------------------------------------------------

    def smooth(self, x: Tensor) -> Tensor:
        """A x for rows x (B, I); not differentiable."""
        spread = x.detach().float().T.contiguous()
        for matrix in (self.by_user, self.by_item):
            offsets, numbers, values = (part.value for part in (matrix.offsets, matrix.indices, matrix.values))
            spread = F.embedding_bag(numbers.long(), spread, offsets[:-1], mode="sum", per_sample_weights=values)
        return spread.T

    def blurred(self, x: Tensor, smoothed: Tensor, t: Tensor | int) -> Tensor:
        """F_t(x) from x and A x, both (B, I), at steps t (B, 1) or for all rows."""
        return x + self.config.alpha * t / self.config.diffusion_steps * (smoothed - x)

    def denoised(self, z: Tensor, c: Tensor, smoothed: Tensor, t: Tensor) -> Tensor:
        """x_hat (B, I) from z_t, c and A c, all (B, I), at steps t (B,)."""
        items = self.item_embedding
        every = sinusoidal_embedding(torch.arange(self.config.diffusion_steps + 1, device=z.device), TIME_SIZE)
        inner_time, outer_time = (time(every)[t] for time in self.times)
        of_state = z @ items / self.num_items
        of_row = (c / c.abs().sum(1, keepdim=True).clamp_min(1)) @ items
        vectors = self.inner_mixer(of_state, of_row, inner_time)
        return self.outer_mixer(vectors @ items.T, c, smoothed, outer_time)

    # --- training ------------------------------------------------------------------------------------------

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        matrix = binary_matrix(data.train, self.num_items)
        of_users, of_items = np.diff(matrix.indptr), np.ravel(matrix.sum(axis=0))
        normalised = scaled(matrix, power(of_users, -0.25), power(of_items, -0.5))
        normalised = normalised / np.float32(singular_vectors(normalised, 1)[0][0])
        self.by_user.set(normalised)
        self.by_item.set(sparse.csr_array(normalised.T))

    def batches(self, data: TrainingData, rng: np.random.Generator) -> RowBatches:
        return RowBatches(binary_matrix(data.train, self.num_items), batch_size=self.config.batch_size, rng=rng)

    def loss(self, batch: RowBatch) -> Tensor:
        x, steps = batch.dense(self.num_items), self.config.diffusion_steps
        if self.config.diffusion:
            t = torch.randint(1, steps + 1, (len(batch),), device=x.device)
            z = self.blurred(x, self.smooth(x), t[:, None])
        else:
            t, z = torch.full((len(batch),), steps, device=x.device), x
        c = self.drop(x)
        x_hat = self.denoised(z, c, self.smooth(c), t)
        return (x - x_hat).square().sum(1).mean() * batch.rank_weight

    # --- scoring -------------------------------------------------------------------------------------------

    @property
    def network_gives_logits(self) -> bool:
        return False  # they are estimates of zeros and ones

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        rows = row_batch(binary_matrix(histories, self.num_items)).to(self.item_embedding.device)
        x = rows.dense(self.num_items)
        smoothed, steps, decay = self.smooth(x), self.config.diffusion_steps, self.config.noise_decay
        if not self.config.diffusion:
            return self.denoised(x, x, smoothed, torch.full((len(x),), steps, device=x.device))
        z = self.blurred(x, smoothed, steps)
        for t in range(steps, 0, -1):
            x_hat = self.denoised(z, x, smoothed, torch.full((len(x),), t, device=x.device))
            of_hat = self.smooth(x_hat)
            z = self.blurred(x_hat, of_hat, t - 1) + decay * (z - self.blurred(x_hat, of_hat, t))
        return z

    def map_vectors(self) -> Tensor | None:
        return self.item_embedding
