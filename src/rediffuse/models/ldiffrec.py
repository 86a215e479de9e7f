"""L-DiffRec: diffusion in a latent space of item clusters (Wang et al., SIGIR 2023, section 3.2).

Items are clustered. Each cluster has its own variational encoder, which maps the user's interactions with its items to
some of the latent dimensions. The latent vector is noised and denoised as DiffRec's rows are, and one decoder maps it
to a multinomial over all items. The encoders of all clusters are one layer here, from all items to all latent
dimensions, in which the weights between different clusters are zero.

The paper clusters the item vectors of a trained LightGCN. Here they are the leading singular vectors of the normalised
training matrix, to which LightGCN's propagation tends, so nothing has to be trained beforehand; or vectors of one's own
(``cluster_by=features``).
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import binary_matrix
from rediffuse.batching.rows import RowBatch, RowBatches, row_batch
from rediffuse.batching.sequences import rank_rows
from rediffuse.config import ModelConfig, Range
from rediffuse.data.features import feature_vectors
from rediffuse.data.histories import Histories
from rediffuse.diffusion import predict_x0, q_sample
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.models.base import TrainingData
from rediffuse.models.diffrec import DiffRec, DiffRecConfig
from rediffuse.models.sampling import Sampling
from rediffuse.nn import dropout

ITEM_VECTOR_SIZE = 64
# How the weights of the two additional losses change over time, as released.
KL_STEPS, KL_CAP, DIFFUSION_EPOCHS, DIFFUSION_FLOOR = 200, 0.3, 500, 0.005


class LDiffRecConfig(DiffRecConfig):
    """DiffRec's options, for the latent diffusion. With ``weighting=order`` it is LT-DiffRec."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": DiffRecConfig.presets["paper"],
        "released": DiffRecConfig.presets["released"],
        "paper:amazon-book": DiffRecConfig.presets["paper:amazon-book"]
        | {"learning_rate": 5e-4, "diffusion_rate": 0.2, "hidden_sizes": (300,), "beta_fixed": False}
        | {"noise_scale": 0.5, "noise_min": 1e-3, "noise_max": 5e-3, "diffusion_share": 0.05},
        "paper:yelp": DiffRecConfig.presets["paper:yelp"]
        | {"learning_rate": 5e-4, "diffusion_rate": 0.2, "hidden_sizes": (300,), "beta_fixed": False}
        | {"noise_scale": 0.01, "noise_min": 5e-3, "noise_max": 0.01, "diffusion_share": 0.03},
        "paper:ml-1m": DiffRecConfig.presets["paper:ml-1m"]
        | {"learning_rate": 1e-3, "diffusion_rate": 0.5, "hidden_sizes": (300,), "beta_fixed": False}
        | {"noise_scale": 5e-3, "noise_min": 5e-3, "noise_max": 0.02, "diffusion_share": 0.03},
    }
    search: ClassVar = {name: domain for name, domain in DiffRecConfig.search.items() if name != "dropout"} | {
        "input_dropout": Range(0.1, 0.7),
        "diffusion_share": Range(0.01, 0.1, log=True),
    }

    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0, description="Decoupled (AdamW).")
    hidden_sizes: tuple[int, ...] = Field((300,), min_length=1, description="Widths of the denoiser's hidden layers.")
    fidelity: Literal["corrected", "released"] = Field(
        "corrected",
        description="released: the decoder is trained to give the row after its dropout, and under weighting=order a "
        "user's only interaction weighs weight_min.",
    )
    noise_scale: float = Field(0.5, gt=0, description="Factor of both ends of the schedule.")
    noise_max: float = Field(0.005, gt=0, description="1 - abar at the last step, before the factor.")
    beta_fixed: bool = Field(False, description="Set the first beta to 1e-5; not in the released L-DiffRec.")
    clusters: int = Field(
        2, ge=1, description="Number of item clusters; each has its own section of the latent vector."
    )
    cluster_by: Literal["interactions", "features"] = Field(
        "interactions",
        description="What the items are clustered by; features: the vectors of the item table, for example those of a "
        "LightGCN, as in the paper.",
    )
    latent_size: int = Field(300, ge=1, description="Width of the latent vector, over all clusters.")
    input_dropout: float = Field(0.1, ge=0, lt=1, description="Dropout on the row that is encoded.")
    diffusion_share: float = Field(0.03, ge=0, description="Weight of the diffusion loss; falls over 500 epochs.")
    diffusion_rate: float = Field(
        0.5, gt=0, description="Learning rate of the denoiser, relative to that of the other weights."
    )


class LDiffRec(DiffRec):
    """DiffRec in a latent space: clusters of items are compressed, and noise is removed there.

    With weighted rows it is LT-DiffRec. Its ablation (no diffusion) is a variational autoencoder.
    """

    name = "ldiffrec"
    Config = LDiffRecConfig
    config: LDiffRecConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    item_cluster: Tensor
    latent_cluster: Tensor
    trained_steps: Tensor

    def __init__(self, config: LDiffRecConfig, num_items: int, num_users: int = 0) -> None:
        if config.clusters > min(config.latent_size, num_items):
            raise ConfigError(
                f"{num_items} items and {config.latent_size} latent dimensions cannot fill {config.clusters} clusters.",
                "Each cluster needs an item and a dimension: lower clusters.",
            )
        super().__init__(config, num_items, num_users)
        width = config.latent_size
        self.encoder = nn.Parameter(torch.randn(num_items, 2 * width))  # means, then log variances; scaled by `fit`
        self.encoder_bias = nn.Parameter(torch.zeros(2 * width))
        self.decoder = nn.Linear(width, num_items)
        nn.init.xavier_normal_(self.decoder.weight)
        nn.init.zeros_(self.decoder.bias)
        self.register_buffer("item_cluster", torch.zeros(num_items, dtype=torch.int64))
        self.register_buffer("latent_cluster", torch.zeros(width, dtype=torch.int64))
        self.register_buffer("trained_steps", torch.zeros((), dtype=torch.int64))
        self.steps_per_epoch = 1

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        for name in ("item_cluster", "latent_cluster"):
            found = state_dict.get(prefix + name)
            if found is not None and not 0 <= int(found.min()) <= int(found.max()) < self.config.clusters:
                others[-1].append(f"{prefix}{name}: clusters are not 0 to {self.config.clusters - 1}")
        super()._load_from_state_dict(state_dict, prefix, *others)

    @classmethod
    def reads_tables_with(cls, config: ModelConfig) -> bool:
        return isinstance(config, LDiffRecConfig) and config.cluster_by == "features"

    # --- training ------------------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        super().check(data)
        if self.config.cluster_by == "features" and (missing := int((~item_features(data).any(axis=1)).sum())):
            warnings.warn(
                f"{missing:,} of {self.num_items:,} items have no vector or only zeros, and are clustered together.",
                RediffuseWarning,
                stacklevel=2,
            )

    def fit(self, data: TrainingData) -> None:
        """Cluster the items, and scale each cluster's encoder by its own size (Glorot & Bengio 2010)."""
        super().fit(data)
        labels = np.zeros(self.num_items, dtype=np.int64)
        if self.config.clusters > 1:
            of_features = self.config.cluster_by == "features"
            vectors = item_features(data) if of_features else singular_item_vectors(data.train, self.num_items)
            labels = cluster_items(vectors, self.config.clusters)
        counts = np.bincount(labels, minlength=self.config.clusters)
        widths = split_width(counts, self.config.latent_size)
        self.item_cluster.copy_(torch.from_numpy(labels))
        self.latent_cluster.copy_(torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)))
        sizes = torch.tensor(counts)[labels] + 2 * torch.tensor(widths)[labels]
        with torch.no_grad():
            self.encoder.mul_((2 / sizes.to(self.encoder.device)).sqrt()[:, None] * self.within_clusters())

    def row_width(self) -> int:
        return self.config.latent_size

    def within_clusters(self) -> Tensor:
        """(I, 2 latent) bool, True where an item and a latent dimension belong to the same cluster."""
        return self.item_cluster[:, None] == self.latent_cluster.repeat(2)

    def parameter_groups(self) -> list[dict[str, Any]]:
        denoiser = list(self.denoiser.parameters())
        inside = {id(p) for p in denoiser}
        other_parameters = [p for p in self.parameters() if id(p) not in inside]
        return [{"params": other_parameters}, {"params": denoiser, "learning_rate_factor": self.config.diffusion_rate}]

    def batches(self, data: TrainingData, rng: np.random.Generator) -> RowBatches:
        batches = super().batches(data, rng)
        self.steps_per_epoch = max(len(batches), 1)
        return batches

    def encode(self, batch: RowBatch, values: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log variances (B, latent), both within (-1, 1) as released."""
        weight = self.encoder * self.within_clusters()
        found = F.embedding_bag(batch.items, weight, batch.offsets, mode="sum", per_sample_weights=values)
        mean, log_variance = torch.tanh(found + self.encoder_bias).chunk(2, dim=1)
        return mean, log_variance

    def loss(self, batch: RowBatch) -> Tensor:
        config, step = self.config, int(self.trained_steps)
        self.trained_steps += 1
        values = dropout(batch.values, config.input_dropout, self.training)
        mean, log_variance = self.encode(batch, values)
        z_0 = mean + torch.exp(log_variance / 2) * torch.randn_like(mean)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1).mean()
        if config.diffusion:
            t, importance = self.timesteps.sample(len(batch), device=z_0.device)
            noise = torch.randn_like(z_0)
            z_t = q_sample(self.schedule, z_0, t, noise)
            output = self.denoiser(z_t, t).float()
            losses = self.weighted_errors(z_0, z_t, noise, t, output)
            counted = rank_rows(batch.rank_weight)
            self.timesteps.update(t[counted], losses[counted])
            z_0_hat = predict_x0(self.schedule, output, z_t, t, config.prediction)
            denoising = (losses * importance).mean()
        else:
            z_0_hat, denoising = z_0, z_0.new_zeros(())
        log_probs = F.log_softmax(self.decoder(z_0_hat).float(), dim=1)
        target = values if config.fidelity == "released" else batch.values
        reconstruction = -(log_probs[batch.owners, batch.items] * target).sum() / len(batch)
        annealed = min(KL_CAP, step / KL_STEPS)
        share = max((1 - step // self.steps_per_epoch / DIFFUSION_EPOCHS) * config.diffusion_share, DIFFUSION_FLOOR)
        return (reconstruction + annealed * divergence + share * denoising) * batch.rank_weight

    def noised(self, data: TrainingData) -> tuple[str, float]:
        chosen = np.flatnonzero(data.train.lengths)[: self.config.batch_size]
        rows = row_batch(self.rows(data.train.take(chosen))).to(self.folded_bias.device)
        mean, log_variance = self.encode(rows, rows.values)
        return "latent vectors", float((mean.square() + log_variance.exp()).mean())

    # --- scoring -------------------------------------------------------------------------------------------

    def index_vectors(self) -> None:
        """None: the decoder is not a single product."""

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        rows = row_batch(self.rows(histories)).to(self.folded_bias.device)
        z, _ = self.encode(rows, rows.values)
        noise = self.row_noise(histories, sampling)
        if self.config.diffusion and self.in_hidden_space:
            z = z if noise is None else self.noised_start(z, noise(z))
            z = self.denoiser.last(self.reverse(z @ self.denoiser.first))
        elif self.config.diffusion:
            z = self.plain_chain(z, noise)
        return self.decoder(z)


def item_features(data: TrainingData) -> NDArray[np.float64]:
    """(num_items, d) the vectors of the item table.

    Raises:
        DataError: it has none.
    """
    vectors = feature_vectors(data.item_table)
    if vectors is None:
        raise DataError(
            "cluster_by=features clusters the vectors of the item table, and it has none.",
            "Give the item table a column vector, features or embedding of lists, or leave cluster_by out.",
        )
    return vectors.astype(np.float64)


def singular_item_vectors(histories: Histories, num_items: int) -> NDArray[np.float64]:
    """(num_items, d) right singular vectors of the matrix of histories, with the weights of one step over the graph.

    The matrix is normalised by the square roots of degrees, as LightGCN's is. d is 0 where it has too few rows.
    """
    matrix = binary_matrix(histories, num_items)
    degrees = [np.maximum(np.ravel(matrix.sum(axis=axis)), 1) for axis in (1, 0)]
    scaled = sparse.diags_array(degrees[0] ** -0.5) @ matrix @ sparse.diags_array(degrees[1] ** -0.5)
    size = min(ITEM_VECTOR_SIZE, *(side - 1 for side in scaled.shape))
    if size < 1:
        return np.empty((num_items, 0))
    start = np.random.default_rng(0).standard_normal(min(scaled.shape))
    _, values, vectors = sparse.linalg.svds(scaled.astype(np.float64), k=size, v0=start)
    return (vectors * values[:, None] ** 2).T  # as one step over the graph, from items to items, does


def cluster_items(vectors: NDArray[np.float64], clusters: int) -> NDArray[np.int64]:
    """(items,) cluster of each item, by k-means (Lloyd 1982) on its vector (d,). None is empty."""
    labels = np.zeros(len(vectors), dtype=np.int64)
    if vectors.shape[1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty cluster gets an item below
            first = np.random.default_rng(0).choice(len(vectors), clusters, replace=False)
            _, labels = kmeans2(vectors, vectors[first], minit="matrix")
        labels = labels.astype(np.int64)
    for empty in np.flatnonzero(np.bincount(labels, minlength=clusters) == 0):
        labels[np.flatnonzero(labels == np.bincount(labels).argmax())[0]] = empty
    return labels


def split_width(counts: NDArray[np.int64], width: int) -> list[int]:
    """Latent dimensions of clusters with ``counts`` items: in proportion, at least one each, ``width`` in total."""
    shares = [max(1, int(count / counts.sum() * width)) for count in counts[:-1]]
    while sum(shares) >= width:  # many small clusters: take from the largest
        shares[int(np.argmax(shares))] -= 1
    return [*shares, width - sum(shares)]
