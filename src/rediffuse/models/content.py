"""The base of trained models with a table of item vectors, which the content of the items is a part of."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from rediffuse.config import ContentConfig
from rediffuse.errors import ConfigError
from rediffuse.features import Content
from rediffuse.models.base import TrainingData
from rediffuse.models.prior import NeuralModel
from rediffuse.nn.item_table import ItemTable


class ContentModel(NeuralModel):
    """A model with a vector for each item: learned for the item alone, plus the projection of the item's content.

    It scores items without an interaction in training by their content. See `rediffuse.nn.item_table`.

    Attributes:
        item_embedding: the item table; row i is item i.
    """

    Config = ContentConfig
    config: ContentConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    reads_content = True
    item_embedding: ItemTable

    def fit(self, data: TrainingData) -> None:
        """Give the item table the content of the items, if there is any."""
        super().fit(data)
        if data.content is None or not self.config.item_features:
            return
        if self.item_embedding.sparse and getattr(self.config, "loss", None) in ("uniform_softmax", "bce", "gbce"):
            raise ConfigError(
                f"item_optimizer=rowwise_adagrad does not go with item features and loss={self.config.loss}.",  # pyright: ignore
                "Set loss=sampled_softmax or sce, item_optimizer=adamw, or item_features=false.",
            )
        learned = np.asarray(data.popularity) > 0
        self.item_embedding.describe(data.content.sparse, data.content.dense, learned, self.config.id_dropout)

    @property
    def scores_new_items(self) -> bool:
        return self.item_embedding.content is not None

    def describe_added(self, content: Content, at: int) -> None:
        assert self.item_embedding.content is not None
        self.item_embedding.content.describe_added(content.sparse, content.dense, at)
        if self.prior is not None:
            self.prior.graph.describe_added(content, at)

    def place_items(self, items: Tensor, vectors: Tensor) -> None:
        """Give items (n,) without an interaction in training these `index_vectors` (n, d), which come from elsewhere.

        For tables that no content is a part of.
        """
        raise NotImplementedError

    def add_item_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        super().add_item_rows(state, prefix, added)
        self.item_embedding.add_rows(state, f"{prefix}item_embedding.", self.num_items, added)
