"""What DiffKG does on the knowledge graph: attention that knows relations, and diffusion over rows of its adjacency.

The released code holds the adjacency as a dense N x N matrix and multiplies whole rows. Nothing here is N x N, and no
row needs to be dense: with W the first and V, c the last layer of the denoiser, what it reads of a row is a bag of rows
of W, and what the loss and the reverse chain need of its output V g + c are H x H matrices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.rows import RowBatch
from rediffuse.diffusion import NoiseSchedule, at_timesteps, q_sample, snr_weights
from rediffuse.graphs import Graph
from rediffuse.nn import RowDenoiser, dropout


class RelationAttention(nn.Module):
    """Entities take in their neighbours, weighed by how the relation between them goes with both (DiffKG, eq. 1-2).

    a_htr = leaky( ([E_h || E_t] W) . E_r ), alpha its softmax over the edges of h, E'_h the direction of
    E_h + sum alpha E_t after dropout; hops add up as ``share`` times what was there plus the new direction.
    """

    def __init__(self, size: int, hops: int, share: float, drop: float) -> None:
        super().__init__()
        self.hops, self.share, self.drop = hops, share, drop
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(2 * size, size), gain=2**0.5))

    def attention(self, entities: Tensor, relations: Tensor, graph: Graph, relation: Tensor) -> Tensor:
        """(edges,) alpha, which sums to one over each head that has edges.

        Args:
            entities, relations: (N, d) and (R, d).
            relation: (edges,) of each edge of ``graph``.
        """
        part, count = graph.block(), len(relations)
        of_head, of_tail = (entities @ half for half in self.weight.chunk(2))
        if len(entities) * count > relations.shape[1] * len(graph):
            logits = (part.both_ends(of_head, of_tail) * F.embedding(relation, relations)).sum(1)
        else:  # many edges: (N, R) numbers are fewer, of which each edge picks one at both of its ends
            heads, tails = _pick(of_head @ relations.T, graph.owners * count + relation), of_tail @ relations.T
            logits = heads + _pick(tails, graph.columns * count + relation)
        return part.softmax(F.leaky_relu(logits, 0.2))

    def forward(self, entities: Tensor, relations: Tensor, graph: Graph, relation: Tensor) -> Tensor:
        """(N, d)."""
        result = entities
        for _ in range(self.hops):
            alpha = self.attention(entities, relations, graph, relation)
            taken = entities + graph.block().gather(entities, alpha)
            entities = F.normalize(dropout(taken, self.drop, self.training), dim=1)
            result = self.share * result + entities
        return result


def _pick(table: Tensor, places: Tensor) -> Tensor:
    return F.embedding(places, table.reshape(-1, 1)).squeeze(1)


class OutputForms(NamedTuple):
    """What losses and chains need of the last layer, V (N, H) and c (N,)."""

    gram: Tensor  # V' V (H, H)
    mixed: Tensor  # V' c (H,)
    constant: Tensor  # c . c ()


def output_forms(denoiser: RowDenoiser) -> OutputForms:
    """O(N H^2), whatever the size of a batch."""
    weight, bias = denoiser.last.weight, denoiser.last.bias
    return OutputForms(weight.T @ weight, weight.T @ bias, bias @ bias)


def squared_errors(denoiser: RowDenoiser, g: Tensor, rows: RowBatch) -> Tensor:
    """(B,) mean over the N columns of (x_0 - (V g + c))^2, without making either.

    = (g' V'V g + 2 g . V'c + c . c - 2 (V' x_0 . g + x_0 . c) + x_0 . x_0) / N.

    Args:
        g: (B, H) what the last layer reads.
        rows: x_0.
    """
    forms = output_forms(denoiser)
    towards, lifted, squared = _products(denoiser, rows)
    own = ((g @ forms.gram) * g).sum(1) + 2 * g @ forms.mixed + forms.constant
    return (own - 2 * ((towards * g).sum(1) + lifted) + squared) / len(denoiser.last.bias)


def _products(denoiser: RowDenoiser, rows: RowBatch) -> tuple[Tensor, Tensor, Tensor]:
    """V' x_0 (B, H), x_0 . c (B,) and x_0 . x_0 (B,)."""
    weight, bias = denoiser.last.weight, denoiser.last.bias
    lifted = _bag(rows, bias[:, None]).squeeze(1)
    return _bag(rows, weight), lifted, _bag(rows, torch.ones_like(bias)[:, None], rows.values.square()).squeeze(1)


def _bag(rows: RowBatch, table: Tensor, values: Tensor | None = None) -> Tensor:
    weights = (rows.values if values is None else values).to(table.dtype)
    return F.embedding_bag(rows.items, table, rows.offsets, mode="sum", per_sample_weights=weights)


def collaborative(denoiser: RowDenoiser, g: Tensor, liked: Tensor) -> Tensor:
    """(B, d) Q = f[:, :I] R' E_u: what people's vectors say of the items that f = V g + c points to.

    The collaborative knowledge graph convolution of DiffKG (eq. 12) in its product form: first V' (R' E_u).

    Args:
        liked: (I, d) R' E_u, for each item the sum of the vectors of its people.
    """
    items = len(liked)
    weight, bias = denoiser.last.weight[:items], denoiser.last.bias[:items]
    return g @ (weight.T @ liked) + bias @ liked


def noised(denoiser: RowDenoiser, schedule: NoiseSchedule, rows: RowBatch, t: Tensor) -> Tensor:
    """(B, H) W x_t for x_t drawn from q(x_t | x_0), without making it.

    eps W, of a W stored (N, H), is normal with covariance W'W, so it is drawn as xi L', L the Cholesky factor of that:
    the same distribution for every W, and so the same expected gradient, from H normal numbers a row instead of N.
    """
    z_0 = denoiser.read(rows.items, rows.offsets, rows.values)
    first = denoiser.first
    nodes, hidden = first.shape
    if nodes <= 4 * hidden:  # few entities: W'W may have no such factor, and eps costs little
        noise = torch.randn(len(z_0), nodes, dtype=z_0.dtype, device=z_0.device) @ first
    else:
        covariance = first.T @ first
        # The rounding of a product grows with its largest eigenvalue, which the trace bounds.
        jitter = 1e-6 * covariance.trace().detach() * torch.eye(hidden, dtype=first.dtype, device=first.device)
        noise = torch.randn_like(z_0) @ torch.linalg.cholesky(covariance + jitter).T
    kept = 1 - denoiser.drop.rate if denoiser.training else 1.0
    return q_sample(schedule, z_0, t, noise / kept**0.5)  # what dropout of eps would do to its variance


def reverse_of_normalised(denoiser: RowDenoiser, schedule: NoiseSchedule, rows: RowBatch) -> Tensor:
    """(B, H) what `RowDenoiser.reverse` gives, where the network scales each x_t to length one before it reads it.

    x_t = a x_0 + V m + r c stays in the span of three known vectors, so its length is known from a, m and r.
    """
    folded, forms = denoiser.fold(), output_forms(denoiser)
    z_0 = _bag(rows, denoiser.first)
    towards, lifted, squared = _products(denoiser, rows)
    a, r, m, z = 1.0, 0.0, torch.zeros_like(z_0), z_0
    for step in reversed(range(schedule.steps)):
        length = a**2 * squared + ((m @ forms.gram) * m).sum(1) + r**2 * forms.constant
        length = length + 2 * a * (towards * m).sum(1) + 2 * a * r * lifted + 2 * r * (m @ forms.mixed)
        scaled = z / length.clamp_min(0).sqrt().clamp_min(1e-12)[:, None]
        g = denoiser.inner(scaled, torch.full((len(z),), step, dtype=torch.int64, device=z.device))
        if step == 0:
            return g
        c1, c2 = float(schedule.posterior_mean_coef1[step]), float(schedule.posterior_mean_coef2[step])
        a, r, m = c2 * a, c2 * r + c1, c2 * m + c1 * g
        z = c1 * (g @ folded.weight.T + folded.bias) + c2 * z
    raise AssertionError("a schedule has a step")


def reverse_rows(denoiser: RowDenoiser, schedule: NoiseSchedule, rows: RowBatch) -> Tensor:
    """(B, H) g at the end of the reverse chain that starts from the rows themselves; V g + c are the denoised rows."""
    if denoiser.normalize:
        return reverse_of_normalised(denoiser, schedule, rows)
    z = _bag(rows, denoiser.first)
    coefficients = schedule.posterior_mean_coef1.tolist(), schedule.posterior_mean_coef2.tolist()
    return denoiser.reverse(z, denoiser.fold(), *coefficients)


def denoising_loss(
    denoiser: RowDenoiser,
    schedule: NoiseSchedule,
    rows: RowBatch,
    vectors: Tensor,
    liked: Tensor,
    share: float,
    *,
    dense: bool = False,
) -> Tensor:
    """(1 - share) times the weighted bound plus ``share`` times the collaborative convolution loss; scalar.

    Args:
        vectors: (B, d) of the rows' entities, what `collaborative` should give.
        dense: noise whole rows, as released; needed where the network scales its input.
    """
    t = torch.randint(schedule.steps, (len(rows),), device=rows.items.device)
    if dense:
        x_0 = rows.dense(len(denoiser.last.bias))
        x_t = q_sample(schedule, x_0, t, torch.randn_like(x_0))
        x_t = F.normalize(x_t, dim=1) if denoiser.normalize else x_t
        z_t = denoiser.drop(x_t) @ denoiser.first
    else:
        z_t = noised(denoiser, schedule, rows, t)
    g = denoiser.inner(z_t, t)
    errors = squared_errors(denoiser, g, rows)
    weights = at_timesteps(snr_weights(schedule, "x0"), t, errors)
    along = (collaborative(denoiser, g, liked) - vectors).square().mean(1)
    return ((1 - share) * weights * errors + share * along).mean()
