"""transition: a random walk over directed transitions between items.

A[i, j] grows by decay^(q - p - 1) for item i at position p and item j at position q, p < q <= p + window, of a training
history, and A[j, i] by ``back`` times that; the diagonal is zero. With its row sums D_r and column sums D_c, and x the
history, weighted by gamma^(interactions since):

    S = D_r^-a A D_c^-(1-a)        scores = x S + g (x S) S

The second hop is the diffusion; it also returns mass to items of the history. With ``diffusion=false``, g is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor

from rediffuse.batching.recency import events_since
from rediffuse.data.histories import Histories
from rediffuse.graphs.item_graph import ItemGraph, power, scaled, transitions
from rediffuse.models.base import TrainingData
from rediffuse.models.propagation import (
    Inputs,
    PropagationConfig,
    PropagationModel,
    Settings,
    scale_columns,
    weight_rows,
)
from rediffuse.nn.sparse import SparseMatrix


class TransitionConfig(PropagationConfig):
    """Options of transition. Null options are chosen on validation data."""

    window: int = Field(30, ge=1, description="How many interactions ahead a transition reaches.")
    decay: float = Field(0.8, gt=0, le=1, description="Factor on a transition for each interaction in between.")
    back: float = Field(0.3, ge=0, description="Weight of a transition in the direction against time.")
    row_exponent: float | None = Field(
        None, ge=0, le=1, description="Exponent a of the row sums; 1 - a is that of the column sums."
    )
    input_decay: float | None = Field(
        None, gt=0, le=1, description="Factor gamma on an item of the history for each interaction since."
    )
    diffusion: bool = Field(True, description="False: one hop alone. The ablation.")
    second_hop: float | None = Field(None, ge=0, description="Weight g of the second hop.")
    neighbours: int | None = Field(
        None, ge=1, description="Items kept per item; null: all. Bounds the memory of large catalogues."
    )


class Transition(PropagationModel):
    """A random walk from the latest items along what users took next.

    It holds a sparse matrix of transitions.
    """

    name = "transition"
    item_rows = (*PropagationModel.item_rows, "row_sums", "column_sums")
    item_matrices = ("transitions",)
    Config = TransitionConfig
    holds_users = False
    config: TransitionConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    row_sums: Tensor
    column_sums: Tensor

    def __init__(self, config: TransitionConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.transitions = SparseMatrix(num_items, num_items)  # A
        self.register_buffer("row_sums", torch.zeros(num_items, dtype=torch.float64))
        self.register_buffer("column_sums", torch.zeros(num_items, dtype=torch.float64))

    def stages(self) -> list[dict[str, tuple[Any, ...]]]:
        first = {"row_exponent": (0.9, 0.7, 0.8, 1.0), "input_decay": (0.6, 0.35, 0.8, 0.95)}
        if not self.config.diffusion:
            return [first]
        # The second hop costs most of the time, so the first stage does without.
        return [first | {"second_hop": (0.0,)}, {"second_hop": (1.0, 0.3, 3.0)}]

    def item_graphs(self, train: Histories) -> dict[str, ItemGraph]:
        config = self.config
        options = {"window": config.window, "decay": config.decay, "back": config.back}
        graph = transitions(train.items, train.offsets, self.num_items, **options, neighbours=config.neighbours)
        return {"transitions": graph}

    def derive(self, data: TrainingData) -> None:
        for buffer, axis in ((self.row_sums, 1), (self.column_sums, 0)):
            sums = self.transitions.csr.sum(axis=axis, dtype=np.float64)
            buffer.copy_(torch.from_numpy(np.ravel(sums)))

    # --- scoring -------------------------------------------------------------------------------------------

    def inputs(self, histories: Histories, settings: Settings) -> Inputs:
        weights = settings["input_decay"] ** events_since(histories).astype(np.float64)
        return {"history": weight_rows(histories, self.num_items, weights)}

    def terms(self, inputs: Inputs, settings: Settings) -> Iterator[tuple[str, Any]]:
        exponent = settings["row_exponent"]
        once = self._step(inputs["history"], exponent)
        yield "hop 1", once
        if weight := self._second_hop(settings):
            yield "hop 2", self._step(once, exponent) * np.float32(weight)

    def map_matrix(self) -> sparse.csr_array:
        exponent = self.settings["row_exponent"]
        matrix = self.transitions.csr
        before = power(self.row_sums.cpu().numpy(), -exponent)
        return scaled(matrix, before, power(self.column_sums.cpu().numpy(), exponent - 1))

    def _second_hop(self, settings: Settings) -> float:
        return settings["second_hop"] if self.config.diffusion else 0.0

    def _step(self, rows: sparse.csr_array, exponent: float) -> sparse.csr_array:
        """Rows times S."""
        before = power(self.row_sums.cpu().numpy(), -exponent)
        after = power(self.column_sums.cpu().numpy(), exponent - 1)
        return scale_columns(sparse.csr_array(scale_columns(rows, before) @ self.transitions.csr), after)

    def all_scores(self, histories: Histories, tried: list[Settings]) -> Iterator[NDArray[np.float32]]:
        """The scores of every setting; settings that differ in the second hop alone share the products."""
        hops: dict[tuple[float, float, bool], list[NDArray[np.float32]]] = {}
        for settings in tried:
            weight = self._second_hop(settings)
            key = settings["row_exponent"], settings["input_decay"], weight > 0
            if key not in hops:
                inputs = self.inputs(histories, settings)
                terms = self.terms(inputs, settings | {"second_hop": float(weight > 0)})
                hops = {key: [term.toarray() for _, term in terms]}
            first, *second = hops[key]
            scores = first.copy()
            if second:
                scores += weight * second[0]
            yield self.weigh_seen(scores, histories, settings)
