"""SLIST: one linear item-item model of what goes together and of what follows (Choi et al., WWW 2021).

Each history is cut at every place. A cut gives a row s of the past and a row t of the future, in which an item weighs
exp(-distance / decay) by its distance from the cut. With S and T all these rows, X the binary users x items matrix and
a = ``alpha``, the weights B minimise

    a |X - X B|^2 + (1 - a) |T - S B|^2 + regularization |B|^2,

so B = (a X'X + (1 - a) S'S + regularization I)^-1 (a X'X + (1 - a) S'T). The paper's SLIS and SLIT are a = 1 and a = 0;
it weighs sessions by age too, which is left out, since a history here is not a session. With ``targets=next``, the
future of a cut is the next item alone, as in the single-target augmentation of TALE (Park et al., WSDM 2025).

S and T are never built: S'S and S'T are sums over pairs of interactions of one user, with weights that depend on their
distance and on what follows. The scores of a user are a row of weights that fall by ``decay_inference``, times B.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import get_lapack_funcs
from torch import Tensor
from torch.nn import functional as F

from rediffuse.batching.matrix import binary_matrix, weighted_bags
from rediffuse.batching.recency import events_since, interaction_weights
from rediffuse.config import ClosedFormConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, TrainingError
from rediffuse.memory import free_memory
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.baselines.item_item import DENSE_ITEMS, gram_matrix
from rediffuse.models.sampling import Sampling

# Dense float32 matrices in memory at once, at most: both sides of the equation, and the weights.
COPIES = 3
# Pairs that weigh less, relative to neighbours, are left out: single precision hardly holds them.
SMALLEST = 1e-7


class SLISTConfig(ClosedFormConfig):
    """Options of SLIST. Decays are in interactions."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"targets": "future"},
        "released": {"targets": "future"},
    }
    search: ClassVar = {
        "regularization": Range(1.0, 1000.0, log=True),
        "alpha": Range(0.0, 1.0),
        "decay_train": Range(0.25, 8.0, log=True),
        "decay_inference": Range(0.5, 32.0, log=True),
    }

    regularization: float = Field(100.0, gt=0, description="L2 penalty on the weights.")
    alpha: float = Field(
        0.3, ge=0, le=1, description="Share of what goes together (SLIS); the rest is what follows (SLIT)."
    )
    targets: Literal["next", "future"] = Field(
        "next", description="What a past predicts: the next item (TALE), or all later ones (SLIST)."
    )
    decay_train: float = Field(2.0, gt=0, description="Interactions from the cut in which a weight falls by 1/e.")
    decay_inference: float = Field(
        3.0, gt=0, description="Interactions in which a weight in the row that is scored falls by 1/e."
    )


class SLIST(Model):
    """A linear item-item model in closed form of what goes together and of what follows.

    Dense weights (num_items, num_items) float32, from the past (rows) to the future (columns).

    Raises:
        ConfigError: the weights do not fit into memory; at construction, with the gibibytes that they need.
    """

    name = "slist"
    Config = SLISTConfig
    config: SLISTConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False
    holds_users = False
    weight: Tensor

    def __init__(self, config: SLISTConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        needed, free = COPIES * 4 * num_items**2, free_memory()
        if needed > free or num_items > DENSE_ITEMS:
            why = (
                f"{free / 2**30:.1f} GiB are free" if needed > free else f"LAPACK solves {DENSE_ITEMS:,} items at most"
            )
            raise ConfigError(
                f"SLIST needs {needed / 2**30:.1f} GiB for {num_items:,} items (a dense item x item matrix), and "
                f"{why}.",
                "Use ease or itemknn, which have sparse weights; or filter rare items with a k-core.",
            )
        self.register_buffer("weight", torch.empty(num_items, num_items))

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        config = self.config
        left = gram_matrix(binary_matrix(data.train, self.num_items))
        left *= np.float32(config.alpha)
        right = left.copy(order="F")
        if config.alpha < 1:
            self._add_transitions(data.train, left, right)
        left[np.diag_indices_from(left)] += np.float32(config.regularization)
        potrf, potrs = get_lapack_funcs(("potrf", "potrs"), (left,))
        factor, failed = potrf(left, lower=1, clean=0, overwrite_a=1)
        if failed:
            raise TrainingError(
                "The item matrix of SLIST is not positive definite in single precision.",
                f"Raise regularization (it is {config.regularization:g}).",
            )
        solution, _ = potrs(factor, right, lower=1, overwrite_b=1)
        self.weight.copy_(torch.from_numpy(solution))

    def _add_transitions(self, histories: Histories, past: NDArray[np.float32], future: NDArray[np.float32]) -> None:
        """Add (1 - alpha) S'S to the lower triangle of ``past``, and (1 - alpha) S'T to ``future``; column order."""
        config, items = self.config, self.num_items
        share, decay = 1 - config.alpha, config.decay_train
        # Views on their memory: the element (i, j) is at j * items + i.
        past_flat, future_flat = past.reshape(-1, order="A"), future.reshape(-1, order="A")
        for _, rows in histories.blocks():
            number, after = rows.items.astype(np.int64), events_since(rows)
            # Past rows that hold an interaction: one for each that follows it. Their squared weights are a geometric
            # series of the distance from the cut.
            cuts = -np.expm1(-2 * after / decay) / -math.expm1(-2 / decay)
            np.add.at(past_flat, number * (items + 1), (share * cuts).astype(np.float32))
            for distance in range(1, int(rows.lengths.max(initial=0))):
                together = math.exp(-distance / decay)  # of both in a past row, where the later one weighs 1
                # Of one in the past and the other in the future; without ``next``, at each cut between them.
                apart = math.exp(-(distance - 1) / decay) * (1 if config.targets == "next" else distance)
                if apart < SMALLEST:
                    break
                first = np.flatnonzero(after >= distance)
                early, late = number[first], number[first + distance]
                low, high = np.minimum(early, late), np.maximum(early, late)
                # A pair of equal items counts twice on the diagonal, as (i, j) and (j, i).
                weight = share * together * cuts[first + distance] * np.where(early == late, 2, 1)
                np.add.at(past_flat, low * items + high, weight.astype(np.float32))
                np.add.at(future_flat, late * items + early, np.float32(share * apart))

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        half_life = self.config.decay_inference * math.log(2)
        weights = interaction_weights(histories, "half_life_events", half_life=half_life)
        items, offsets, _, values = weighted_bags(histories, self.num_items, weights, self.weight.device)
        return F.embedding_bag(items, self.weight, offsets, mode="sum", per_sample_weights=values)

    def item_neighbours(self, items: NDArray[np.int64]) -> Tensor:
        return self.weight[torch.from_numpy(items).to(self.weight.device)]
