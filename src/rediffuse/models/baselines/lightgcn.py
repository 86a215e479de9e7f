"""LightGCN: embeddings averaged over a few steps of propagation on the user-item graph.

He et al., SIGIR 2020: ``e_u^(k+1) = sum over i in N_u of e_i^(k) / sqrt(|N_u| |N_i|)`` and likewise for items (eq. 7);
a node's vector is the mean of its e^(0) .. e^(layers) (eq. 8). Only e^(0) is learned, with BPR.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rediffuse.batching.matrix import bags, binary_matrix
from rediffuse.config import ContentConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.features import Content
from rediffuse.graphs import Graph, bipartite_adjacency, propagate, symmetric_normalised
from rediffuse.models.base import TrainingData
from rediffuse.models.content import ContentModel
from rediffuse.models.factors import FactorConfig, FactorModel


class LightGCNConfig(FactorConfig, ContentConfig):
    """Options of LightGCN, with the paper's three layers."""

    search = FactorConfig.search | {"layers": Range(1, 4)}

    layers: int = Field(3, ge=1, description="Propagation steps.")


class LightGCN(ContentModel, FactorModel):
    """User and item vectors, averaged over a few steps along the graph of interactions.

    The propagated vectors are stored with the weights, the graph is not.
    """

    name = "lightgcn"
    item_rows = (*FactorModel.item_rows, "item_vectors", "item_spread", "item_degree")
    Config = LightGCNConfig
    config: LightGCNConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    user_vectors: Tensor
    item_vectors: Tensor
    item_spread: Tensor
    item_degree: Tensor

    def __init__(self, config: LightGCNConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        size = config.embedding_size
        self.graph: Graph | None = None
        self.register_buffer("user_vectors", torch.zeros(num_users, size))
        self.register_buffer("item_vectors", torch.zeros(num_items, size))
        self.register_buffer("item_spread", torch.zeros(num_items, size))
        self.register_buffer("item_degree", torch.zeros(num_items))

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        links = binary_matrix(data.train, data.num_items)
        self.item_degree.copy_(torch.from_numpy(np.ravel(links.sum(axis=0))))
        self.graph = Graph(symmetric_normalised(bipartite_adjacency(links)), self.item_degree.device)

    def _layers(self) -> list[Tensor]:
        assert self.graph is not None, "call fit first"
        start = torch.cat((self.user_embedding.weight, self.item_embedding.all()))
        return propagate(self.graph, start, self.config.layers)

    def vectors(self) -> tuple[Tensor, Tensor]:
        users, items = torch.stack(self._layers()).mean(0).split((self.num_users, self.num_items))
        return users, items

    @torch.no_grad()
    def prepare(self) -> None:
        layers = self._layers()
        users, items = torch.stack(layers).mean(0).split((self.num_users, self.num_items))
        self.user_vectors.copy_(users)
        self.item_vectors.copy_(items)
        # What an item sends to a new neighbour over all steps, except for the factor of the neighbour's degree.
        sent = torch.stack([layer[self.num_users :] for layer in layers[:-1]]).sum(0) / len(layers)
        self.item_spread.copy_(sent * self.item_degree.clamp(min=1).rsqrt()[:, None])

    @torch.no_grad()
    def describe_added(self, content: Content, at: int) -> None:
        super().describe_added(content, at)
        # New items have no neighbours, so propagation leaves them e^(0) alone.
        alone = self.item_embedding.all()[at:] / (self.config.layers + 1)
        self.item_vectors[at:], self.item_spread[at:] = alone, alone

    @torch.no_grad()
    def place_items(self, items: Tensor, vectors: Tensor) -> None:
        self.item_vectors[items] = self.item_spread[items] = vectors

    def answering_vectors(self) -> tuple[Tensor, Tensor]:
        return self.user_vectors, self.item_vectors

    def fold_in(self, histories: Histories) -> Tensor:
        """The vector that propagation gives to a new node with these edges and an e^(0) of zero."""
        items, offsets, degree = bags(histories, self.num_items, self.item_spread.device)
        return F.embedding_bag(items, self.item_spread, offsets, mode="sum") * degree.float().rsqrt()[:, None]
