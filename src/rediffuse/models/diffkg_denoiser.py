"""The denoiser of DiffKG: its batches, its loss, and how it scores the edges of the knowledge graph.

The denoiser recovers rows of the N x N adjacency of the graph from noise (Jiang et al., WSDM 2024). The
released code holds that matrix densely and multiplies whole rows. Here nothing is N x N and no row is dense. With W the
first layer of the denoiser and V, c the last, reading a sparse row is a weighted sum of rows of W, and the loss and the
reverse chain need only H x H matrices made of the output layer V g + c.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from rediffuse.batching.rows import RowBatch, RowBatches, row_batch
from rediffuse.batching.sequences import rank_slice
from rediffuse.data.knowledge import KnowledgeEdges, leading_to
from rediffuse.diffusion import NoiseSchedule, at_timesteps, q_sample, snr_weights
from rediffuse.graphs import Graph
from rediffuse.nn import RowDenoiser

# Entities whose rows are denoised at once.
BLOCK = 4096
# Scores of pairs of entities that are held at once.
PAIRS = 4_000_000

# --- batches -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EntityBatch:
    """Rows of the adjacency, and the entities (B,) that they belong to."""

    rows: RowBatch
    entities: Tensor

    def to(self, device: torch.device) -> EntityBatch:
        return EntityBatch(self.rows.to(device), self.entities.to(device))


class EntityBatches:
    """Every entity with an edge, once an epoch. No user is in these batches."""

    def __init__(self, edges: KnowledgeEdges, *, batch_size: int, rng: np.random.Generator) -> None:
        self.rows = RowBatches(edges.matrix(), batch_size=batch_size, rng=rng)

    def __len__(self) -> int:
        return len(self.rows)

    def get(self, index: int, rank: int = 0, ranks: int = 1) -> EntityBatch:
        entities, _ = rank_slice(self.rows.users(index), rank, ranks)
        return EntityBatch(self.rows.get(index, rank, ranks), torch.from_numpy(entities))

    def users(self, index: int) -> NDArray[np.int64]:
        return np.empty(0, dtype=np.int64)


# --- loss ----------------------------------------------------------------------------------------------------


def denoising_loss(
    denoiser: RowDenoiser,
    schedule: NoiseSchedule,
    rows: RowBatch,
    entities: Tensor,
    item_sums: Tensor,
    collaborative: float,
    *,
    dense: bool = False,
) -> Tensor:
    """The scalar loss: a share ``collaborative`` of the convolution's loss, and the rest of the weighted bound.

    Args:
        rows: x_0.
        entities: (B, d) embeddings of the rows' entities, which `collaborative_convolution` should give.
        item_sums: see there.
        dense: make whole rows and noise them, as in the released code; needed if the network scales its input.
    """
    t = torch.randint(schedule.steps, (len(rows),), device=rows.items.device)
    if dense:
        x_0 = rows.dense(len(denoiser.last.bias))
        x_t = q_sample(schedule, x_0, t, torch.randn_like(x_0))
        x_t = F.normalize(x_t, dim=1) if denoiser.normalize else x_t
        z_t = denoiser.drop(x_t) @ denoiser.first
    else:
        z_t = noised_hidden(denoiser, schedule, rows, t)
    g = denoiser.inner(z_t, t)
    errors = squared_errors(denoiser, g, rows)
    weights = at_timesteps(snr_weights(schedule, "x0"), t, errors)
    convolution = (collaborative_convolution(denoiser, g, item_sums) - entities).square().mean(1)
    return ((1 - collaborative) * weights * errors + collaborative * convolution).mean()


def noised_hidden(denoiser: RowDenoiser, schedule: NoiseSchedule, rows: RowBatch, t: Tensor) -> Tensor:
    """W x_t (B, H), with x_t drawn from q(x_t | x_0) but never made.

    W is stored (N, H), so eps W is normal with covariance W'W. It is drawn as xi L', where L is the Cholesky factor of
    W'W: the same distribution for every W, hence the same expected gradient, from H normal numbers per row and not N.
    """
    z_0 = denoiser.read(rows.items, rows.offsets, rows.values)
    first = denoiser.first
    nodes, hidden = first.shape
    if nodes <= 4 * hidden:  # few entities: W'W may be singular, and drawing eps costs little
        noise = torch.randn(len(z_0), nodes, dtype=z_0.dtype, device=z_0.device) @ first
    else:
        covariance = first.T @ first
        # The rounding error of a product grows with its largest eigenvalue, and the trace bounds that.
        jitter = 1e-6 * covariance.trace().detach() * torch.eye(hidden, dtype=first.dtype, device=first.device)
        noise = torch.randn_like(z_0) @ torch.linalg.cholesky(covariance + jitter).T
    kept = 1 - denoiser.drop.rate if denoiser.training else 1.0
    return q_sample(schedule, z_0, t, noise / kept**0.5)  # dropout of eps would scale its variance by 1 / kept


class OutputProducts(NamedTuple):
    """Products of the last layer, V (N, H) and c (N,), with itself."""

    gram: Tensor  # V' V (H, H)
    cross: Tensor  # V' c (H,)
    constant: Tensor  # c . c ()


def output_products(denoiser: RowDenoiser) -> OutputProducts:
    """Computed in O(N H^2), whatever the size of a batch."""
    weight, bias = denoiser.last.weight, denoiser.last.bias
    return OutputProducts(weight.T @ weight, weight.T @ bias, bias @ bias)


def squared_errors(denoiser: RowDenoiser, g: Tensor, rows: RowBatch) -> Tensor:
    """(B,) the mean over N columns of (x_0 - (V g + c))^2, of which neither term is made.

    It is (g' V'V g + 2 g . V'c + c . c - 2 (V' x_0 . g + x_0 . c) + x_0 . x_0) / N.

    Args:
        g: (B, H) the input of the last layer.
        rows: x_0.
    """
    products = output_products(denoiser)
    x_0_v, x_0_c, x_0_x_0 = _row_products(denoiser, rows)
    output = ((g @ products.gram) * g).sum(1) + 2 * g @ products.cross + products.constant
    return (output - 2 * ((x_0_v * g).sum(1) + x_0_c) + x_0_x_0) / len(denoiser.last.bias)


def _row_products(denoiser: RowDenoiser, rows: RowBatch) -> tuple[Tensor, Tensor, Tensor]:
    """V' x_0 (B, H), x_0 . c (B,) and x_0 . x_0 (B,)."""
    weight, bias = denoiser.last.weight, denoiser.last.bias
    x_0_c = _weighted_sums(rows, bias[:, None]).squeeze(1)
    x_0_x_0 = _weighted_sums(rows, torch.ones_like(bias)[:, None], rows.values.square()).squeeze(1)
    return _weighted_sums(rows, weight), x_0_c, x_0_x_0


def _weighted_sums(rows: RowBatch, table: Tensor, values: Tensor | None = None) -> Tensor:
    """(B, d) for each sparse row, the sum of its columns' rows of ``table`` (N, d) times its values, or ``values``."""
    weights = (rows.values if values is None else values).to(table.dtype)
    return F.embedding_bag(rows.items, table, rows.offsets, mode="sum", per_sample_weights=weights)


def collaborative_convolution(denoiser: RowDenoiser, g: Tensor, item_sums: Tensor) -> Tensor:
    """(B, d) f[:, :I] R' E_u: the users of the items that the denoised rows f = V g + c point to.

    The collaborative knowledge graph convolution of DiffKG (eq. 12) as a product, V' (R' E_u) first.

    Args:
        item_sums: (I, d) R' E_u, for each item the sum of its users' embeddings.
    """
    items = len(item_sums)
    weight, bias = denoiser.last.weight[:items], denoiser.last.bias[:items]
    return g @ (weight.T @ item_sums) + bias @ item_sums


# --- the reverse chain and the scores of edges ----------------------------------------------------------------


class Noised(NamedTuple):
    """A start of the reverse chain that is noised: sqrt(abar) x_0 + sqrt(1 - abar) eps."""

    abar: float
    eps: Tensor  # (B, N)


def reverse_chain(
    denoiser: RowDenoiser, schedule: NoiseSchedule, rows: RowBatch, noised: Noised | None = None
) -> Tensor:
    """(B, H) g at the end of the reverse chain; V g + c are the denoised rows.

    Args:
        rows: x_0, from which the chain starts.
        noised: the noise on them at the start; None: none.
    """
    if denoiser.normalize:
        return _reverse_chain_normalised(denoiser, schedule, rows, noised)
    z = _weighted_sums(rows, denoiser.first)
    if noised is not None:
        z = noised.abar**0.5 * z + (1 - noised.abar) ** 0.5 * (noised.eps @ denoiser.first)
    coefficients = schedule.posterior_mean_coef1.tolist(), schedule.posterior_mean_coef2.tolist()
    return denoiser.reverse(z, denoiser.fold(), *coefficients)


def _reverse_chain_normalised(
    denoiser: RowDenoiser, schedule: NoiseSchedule, rows: RowBatch, noised: Noised | None
) -> Tensor:
    """`reverse_chain` of a network that scales each x_t to length one.

    x_t = a x_0 + V m + r c + e eps stays in the span of known vectors, so a, m, r and e give its length.
    """
    folded, products = denoiser.fold(), output_products(denoiser)
    z_0 = _weighted_sums(rows, denoiser.first)
    x_0_v, x_0_c, x_0_x_0 = _row_products(denoiser, rows)
    a, r, m, z = 1.0, 0.0, torch.zeros_like(z_0), z_0
    e, eps_eps, eps_x_0, eps_v, eps_c = 0.0, *(torch.zeros((), device=z.device) for _ in range(4))
    if noised is not None:
        a, e, eps = noised.abar**0.5, (1 - noised.abar) ** 0.5, noised.eps
        z = a * z_0 + e * (eps @ denoiser.first)
        of_row = eps[rows.owners, rows.items] * rows.values.to(eps.dtype)
        eps_x_0 = torch.zeros_like(x_0_c).index_add(0, rows.owners, of_row)
        eps_eps, eps_v, eps_c = eps.square().sum(1), eps @ denoiser.last.weight, eps @ denoiser.last.bias
    for step in reversed(range(schedule.steps)):
        square = a**2 * x_0_x_0 + ((m @ products.gram) * m).sum(1) + r**2 * products.constant
        square = square + 2 * a * (x_0_v * m).sum(1) + 2 * a * r * x_0_c + 2 * r * (m @ products.cross)
        square = square + e**2 * eps_eps + 2 * e * (a * eps_x_0 + (eps_v * m).sum(-1) + r * eps_c)
        scaled = z / square.clamp_min(0).sqrt().clamp_min(1e-12)[:, None]
        g = denoiser.inner(scaled, torch.full((len(z),), step, dtype=torch.int64, device=z.device))
        if step == 0:
            return g
        c1, c2 = float(schedule.posterior_mean_coef1[step]), float(schedule.posterior_mean_coef2[step])
        a, e, r, m = c2 * a, c2 * e, c2 * r + c1, c2 * m + c1 * g
        z = c1 * (g @ folded.weight.T + folded.bias) + c2 * z
    raise AssertionError("a schedule has at least one step")


@torch.no_grad()
def denoise_graph(
    denoiser: RowDenoiser, schedule: NoiseSchedule, edges: KnowledgeEdges, noising_steps: int = 0, seed: int = 0
) -> Tensor:
    """(N, H) g of all entities, without dropout: the denoised row of an entity is V g + c.

    Args:
        noising_steps: steps of noise on a row before it is denoised.
        seed: of that noise.
    """
    training, matrix, device = denoiser.training, edges.matrix(), denoiser.first.device
    denoiser.eval()
    # Noise is dense, and needs smaller blocks.
    block = max(1, PAIRS // edges.num_nodes) if noising_steps else BLOCK
    generator, blocks = torch.Generator().manual_seed(seed), []
    for start in range(0, edges.num_nodes, block):
        rows, noised = row_batch(matrix[start : start + block]).to(device), None
        if noising_steps:
            eps = torch.randn(len(rows), edges.num_nodes, generator=generator).to(denoiser.first)
            noised = Noised(float(schedule.alphas_cumprod[noising_steps - 1]), eps)
        blocks.append(reverse_chain(denoiser, schedule, rows, noised))
    denoiser.train(training)
    return torch.cat(blocks)


@torch.no_grad()
def edge_scores(denoiser: RowDenoiser, g: Tensor, graph: Graph) -> NDArray[np.float64]:
    """(edges,) for each edge of ``graph``, the column of its tail in the denoised row of its head.

    Args:
        g: (N, H) from `denoise_graph`.
    """
    scores = graph.block().inner(g, denoiser.last.weight) + denoiser.last.bias[graph.columns]
    return scores.cpu().numpy().astype(np.float64)


@torch.no_grad()
def best_of_all_pairs(denoiser: RowDenoiser, g: Tensor, edges: KnowledgeEdges, k: int) -> NDArray[np.bool_]:
    """(edges,) whether the tail is among the k best of all N columns in the head's denoised row, as released.

    Args:
        g: (N, H) from `denoise_graph`.
    """
    rows = (denoiser.last(block) for block in g.split(max(1, PAIRS // len(g))))
    best = [row.topk(min(k, len(g))).indices.cpu() for row in rows]
    return leading_to(edges, torch.cat(best).numpy())
