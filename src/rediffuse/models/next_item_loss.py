"""The training losses of next-item models: which items each target is compared with, and how."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Protocol

import torch
from torch import Tensor

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.losses import (
    Draws,
    binary_cross_entropy,
    gbce_beta,
    sampled_softmax,
    scalable_cross_entropy,
    softmax_cross_entropy,
    uniform_softmax,
)
from rediffuse.losses.softmax import Biased
from rediffuse.nn.item_table import ItemTable

# Negatives of each loss unless the option says otherwise.
NEGATIVES = {"sampled_softmax": 1024, "uniform_softmax": 256, "bce": 1, "gbce": 256, "sce": 256}


class ItemRanker(Protocol):
    """What the losses use of a model: `rediffuse.models.sequence.SequenceModel` explains each."""

    config: Any
    num_items: int
    item_embedding: ItemTable
    draws: Draws

    def metric_space(self, x: Tensor) -> Tensor: ...
    def item_vectors(self, items: Tensor) -> Tensor: ...
    def catalogue(self) -> Tensor: ...
    def classes(self) -> Tensor: ...
    def biased(self, batch: SequenceBatch) -> Biased | None: ...


def negative_draws(loss: str, popularity: Tensor) -> Draws | None:
    """How items are drawn as negatives, from their counts in training (num_items,); None: not by popularity."""
    if loss == "sampled_softmax":
        # By popularity ^ 0.75 (Mikolov et al. 2013); items without an interaction can be drawn too.
        return Draws((popularity + 1).pow(0.75))
    if loss == "in_batch":
        return Draws(popularity.clamp(min=1))
    return None


def draw_negatives(model: ItemRanker, targets: int, device: torch.device) -> Tensor | None:
    """The negatives of a batch with so many targets: (m,) items for all, or (targets, k); None: the loss draws none."""
    loss = model.config.loss
    count = model.config.negatives or NEGATIVES.get(loss, 1)
    if loss == "sampled_softmax":
        return model.draws.draw(count)
    if loss in ("uniform_softmax", "bce", "gbce"):
        return torch.randint(model.num_items, (targets, count), device=device)
    return None


def next_item_loss(
    model: ItemRanker,
    vectors: Tensor,
    batch: SequenceBatch,
    drawn: Tensor | None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch that the model's option ``loss`` names.

    Args:
        model: gives the item vectors, the options and the draws of negatives.
        vectors: (n, d) one per target of the batch.
        batch: its targets.
        drawn: what `draw_negatives` gave for it.
        weights: (n,) importance weights, or None for ones.

    Returns:
        The scalar loss, and the (n,) unweighted losses of the targets, detached; NaN where ``sce`` left a target out.
    """
    loss, targets = model.config.loss, batch.targets
    # Inner products are not bounded, and bfloat16 rounds a logit of 100 by up to 0.25. Cosines over a temperature are
    # small enough for it.
    exact = model.config.temperature is None
    with torch.autocast(vectors.device.type, enabled=False) if exact else contextlib.nullcontext():
        queries = model.metric_space(vectors.float() if exact else vectors)

        if loss == "softmax":
            items = model.metric_space(model.classes())
            return softmax_cross_entropy(queries, items, targets, weights, model.biased(batch))

        positives = model.item_vectors(targets)

        if loss == "in_batch":
            log_counts = model.draws.log_probabilities[targets] + math.log(len(targets))
            same_row = batch.rows, batch.rows
            return sampled_softmax(queries, positives, positives, targets, targets, log_counts, weights, same_row)

        if loss == "sampled_softmax":
            assert drawn is not None
            log_counts = model.draws.log_probabilities[drawn] + math.log(len(drawn))
            return sampled_softmax(queries, positives, model.item_vectors(drawn), targets, drawn, log_counts, weights)

        if loss == "sce":
            items = model.metric_space(model.catalogue().detach())
            negatives = model.config.negatives or NEGATIVES[loss]
            return scalable_cross_entropy(queries, positives, items, model.item_vectors, targets, negatives, weights)

        # uniform_softmax, bce and gbce
        assert drawn is not None
        table, *places = model.item_embedding.nearby(targets, drawn)
        operands = queries, positives, table, model.metric_space, *places
        sparse = model.item_embedding.sparse
        if loss == "uniform_softmax":
            return uniform_softmax(*operands, weights=weights, sparse=sparse)
        beta = gbce_beta(drawn.shape[1], model.num_items) if loss == "gbce" else 1.0
        return binary_cross_entropy(*operands, beta=beta, weights=weights, sparse=sparse)
