"""The content of the items that a model learns from."""

from __future__ import annotations

import polars as pl

from rediffuse.data.subsets import TrainingView
from rediffuse.features import Content, FeatureEncoder
from rediffuse.models.base import Model


def encoded_users(model: Model, view: TrainingView, seed: int) -> Content | None:
    """The content of all users, by an encoder of those with a training interaction, as `encoded_items`."""
    if not (model.reads_content_with(model.config) and view.user_features) or view.user_table is None:
        return None
    return FeatureEncoder.fit(view.user_table, view.user_features, view.train.lengths > 0, seed).encode(view.user_table)


def encoded_items(model: Model, view: TrainingView, seed: int) -> tuple[FeatureEncoder | None, Content | None]:
    """The encoder of the declared item features, and the content of all items; None where the model does not read it.

    The encoder learns from the items with a training interaction alone: others are what new items will be.

    Args:
        model: its options may say that it does not read features.
        view: what training may see.
        seed: of the training.

    Raises:
        DataError: a column does not hold what its kind says.
    """
    table: pl.DataFrame | None = view.item_table
    if not (model.reads_content_with(model.config) and view.item_features) or table is None:
        return None, None
    encoder = FeatureEncoder.fit(table, view.item_features, view.valid.popularity > 0, seed)
    return encoder, encoder.encode(table)
