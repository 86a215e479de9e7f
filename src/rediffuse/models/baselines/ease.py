"""EASE: embarrassingly shallow autoencoders (Steck, WWW 2019): linear item-item weights in closed form.

With X the binary users x items matrix, G = X^T X + regularization * I and P = G^-1, the weights are
B = I - P / diag(P): ``B_ij = -P_ij / P_jj`` and zero on the diagonal (eq. 8). The scores of a user are their
row of X times B.

With ``masking`` p > 0, p / (1 - p) * diag(X^T X) is added to G. Up to the constant factor 1 / (1 - p), which ranks
nothing, these are the weights that predict the cells of a row that dropout with rate p has hidden: the EDLAE of Steck
(NeurIPS 2020) of full rank, with the loss at hidden cells alone. Frequent items are then regularised more.

With ``neighbours``, B has at most that many weights for each item j: those of the items S with the largest cosines to
it. Column j is the regression on them, B_Sj = (G_SS)^-1 G_Sj, which is exact; with all other items in S it is the
column above. The sparse approximation of Steck (NeurIPS 2019) solves such blocks too, for clusters of items.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from scipy.linalg import get_lapack_funcs
from torch import Tensor
from torch.nn import functional as F

from rediffuse.batching.matrix import binary_matrix, shape_of
from rediffuse.config import Range
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, RediffuseWarning, TrainingError
from rediffuse.memory import free_memory
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.item_item import (
    BLOCK,
    DENSE_ITEMS,
    ItemItemConfig,
    ItemItemModel,
    gram_matrix,
    invert,
    nearest_items,
    sparse_scores,
)
from rediffuse.models.sampling import Sampling
from rediffuse.nn.sparse import wrong_rows

# Dense float32 matrices in memory at once, at most: the weights, and those that they are computed from.
COPIES = 3
# Bytes for each of an item's neighbours: its number and weight, by column, by row, and as stored.
NEIGHBOUR = 32
# Neighbours of an item where the dense matrix does not fit.
AUTOMATIC = 200


class EASEConfig(ItemItemConfig):
    """Options of EASE. The paper has one, ``regularization``."""

    search: ClassVar = {
        "regularization": Range(1.0, 5000.0, log=True),
        "masking": (0.0, 0.1, 0.2, 0.33, 0.5),
        "input_weighting": ("none", "order", "half_life_events"),
        "half_life": Range(1.0, 100.0, log=True),
    }

    regularization: float = Field(250.0, gt=0, description="L2 penalty on the weights, added to the diagonal of X^T X.")
    masking: float = Field(
        0.0, ge=0, lt=1, description="Rate of the dropout on the row that the weights undo, in closed form (EDLAE)."
    )
    neighbours: int | None = Field(
        None,
        ge=1,
        description="Weights per item, the nearest ones. None: all, or 200 if they do not fit into memory or there are "
        "more than 23,170 items.",
    )


class EASE(ItemItemModel):
    """A linear item-item model in closed form: a ridge regression of every item on all others.

    Its weights: dense ``weight`` (num_items, num_items) float32, or sparse as compressed rows.

    Sparse weights are in ``weight`` (n,), with their columns ``near`` (n,) int32 and ``offsets`` (num_items + 1,)
    int64. The last two are empty where the weights are dense.

    Raises:
        ConfigError: the weights of ``neighbours`` do not fit into memory; at construction, with the GiB needed.

    Warns:
        RediffuseWarning: in `fit`, the dense weights do not fit into memory or LAPACK; sparse ones take their place.
    """

    name = "ease"
    Config = EASEConfig
    config: EASEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    weight: Tensor
    near: Tensor
    offsets: Tensor

    def __init__(self, config: EASEConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        if config.neighbours is not None:
            kept, free = min(config.neighbours, num_items), free_memory()
            needed = NEIGHBOUR * num_items * kept
            if needed > free or 2 * kept > DENSE_ITEMS:  # an item's equations are in double precision
                why = f"{free / 2**30:.1f} GiB are free" if needed > free else f"LAPACK solves {DENSE_ITEMS // 2:,}"
                raise ConfigError(
                    f"EASE needs {needed / 2**30:.1f} GiB for {config.neighbours:,} neighbours of {num_items:,} items, "
                    f"and {why}.",
                    "Lower neighbours; or filter rare items with a k-core.",
                )
        # Dense or sparse is decided by `fit`, or by the file that is loaded.
        self.register_buffer("weight", torch.empty(0))
        self.register_buffer("near", torch.empty(0, dtype=torch.int32))
        self.register_buffer("offsets", torch.empty(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        found = {name: state_dict.get(prefix + name) for name in ("weight", "near", "offsets")}
        weight, near, offsets = found.values()
        if weight is not None and near is not None and offsets is not None:
            problem = wrong_rows(offsets, near, weight, self.num_items, self.num_items) if len(offsets) else None
            if not len(offsets) and weight.shape != (self.num_items, self.num_items):
                problem = f"weight has the shape {tuple(weight.shape)}, not one row and column per item"
            if problem:
                others[-1].append(f"{prefix}{problem}")
        for name in ("weight", "near", "offsets"):
            buffer = getattr(self, name)
            if (given := state_dict.get(prefix + name)) is not None and given.shape != buffer.shape:
                setattr(self, name, buffer.new_empty(given.shape))
        super()._load_from_state_dict(state_dict, prefix, *others)

    # --- training ------------------------------------------------------------------------------------------

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        matrix = binary_matrix(data.train, data.num_items)
        counts = np.ravel(matrix.sum(axis=0))
        # Added to the diagonal of X^T X.
        masking = self.config.masking / (1 - self.config.masking)
        penalty = (self.config.regularization + masking * counts).astype(np.float32)
        device, neighbours = self.weight.device, self.neighbours()
        if neighbours is None:
            self.near, self.offsets = self.near[:0], self.offsets[:0]
            self.weight = self._dense(matrix, penalty)
            return
        weights = restricted_weights(matrix, penalty, neighbours)
        self.weight = torch.from_numpy(weights.data).to(device)
        self.near = torch.from_numpy(weights.indices.astype(np.int32)).to(device)
        self.offsets = torch.from_numpy(weights.indptr.astype(np.int64)).to(device)

    def neighbours(self) -> int | None:
        """Weights per item; None: dense weights, which fit into memory."""
        items, free = self.num_items, free_memory()
        # What this model holds already, from an earlier fit, can be used again.
        needed = COPIES * 4 * items**2 - self.weight.nbytes
        if self.config.neighbours is not None or (needed <= free and items <= DENSE_ITEMS):
            return self.config.neighbours
        chosen = int(max(1, min(AUTOMATIC, free // (NEIGHBOUR * items))))
        why = f"{free / 2**30:.1f} GiB are free" if needed > free else f"LAPACK inverts {DENSE_ITEMS:,} items at most"
        warnings.warn(
            f"EASE needs {needed / 2**30:.1f} GiB for {items:,} items (a dense item x item matrix), and {why}. "
            f"Each item keeps the weights of its {chosen} nearest items instead; set "
            "neighbours to choose how many.",
            RediffuseWarning,
            stacklevel=3,
        )
        return chosen

    def _dense(self, matrix: sparse.csr_array, penalty: NDArray[np.float32]) -> Tensor:
        gram = gram_matrix(matrix)
        gram[np.diag_indices_from(gram)] += penalty
        # Only the lower triangle is filled, which is the upper one of the transpose; mirror it.
        half = torch.from_numpy(invert(gram, "EASE", self.config.regularization).T)
        diagonal = half.diagonal().clone()
        half.triu_(1)
        shape = (self.num_items, self.num_items)
        weight = self.weight if self.weight.shape == shape else self.weight.new_empty(shape)
        for start in range(0, self.num_items, BLOCK):
            rows = slice(start, start + BLOCK)
            weight[rows] = (-(half[rows] + half[:, rows].T) / diagonal).to(weight.device)
        return weight

    # --- scoring -------------------------------------------------------------------------------------------

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        bags = self.row_bags(histories, self.weight.device)
        if len(self.offsets):
            return sparse_scores(bags, self.offsets, self.near, self.weight, self.num_items)
        items, offsets, _, values = bags
        plain = self.config.input_weighting == "none"
        return F.embedding_bag(items, self.weight, offsets, mode="sum", per_sample_weights=None if plain else values)

    def item_neighbours(self, items: NDArray[np.int64]) -> Tensor:
        chosen = torch.from_numpy(items).to(self.weight.device)
        if not len(self.offsets):
            return self.weight[chosen]
        one_each = chosen, torch.arange(len(items)), torch.ones_like(chosen), torch.ones(len(items))
        return sparse_scores(one_each, self.offsets, self.near, self.weight, self.num_items)


def restricted_weights(matrix: sparse.csr_array, penalty: NDArray[np.float32], neighbours: int) -> sparse.csr_array:
    """EASE with at most ``neighbours`` weights in each column.

    Memory is bounded by the weights and by a block of similarities; X^T X is never held as a whole.

    Args:
        matrix: (users, items) binary.
        penalty: (items,) what is added to the diagonal of X^T X.
        neighbours: items that an item's column is regressed on, by cosine.

    Returns:
        (items, items) float32; column j has weights only at the nearest items of j.

    Raises:
        TrainingError: a block is not positive definite.
    """
    _, items = shape_of(matrix)
    (posv,) = get_lapack_funcs(("posv",), dtype=np.float64)
    columns = sparse.csc_array(matrix, dtype=np.float64)
    near, values = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.float32)]
    counts = np.zeros(items, dtype=np.int64)
    for block, _, found, _ in nearest_items(matrix, min(neighbours, items), 0.0):
        for item, support in _grouped(block, found):
            rows = columns[:, np.append(support, item)]
            gram = (rows.T @ rows).toarray()
            inner = gram[:-1, :-1]
            inner[np.diag_indices_from(inner)] += penalty[support]
            _, solution, failed = posv(inner, gram[:-1, -1], lower=1)
            if failed:
                raise TrainingError("The nearest items of EASE are not independent.", "Raise regularization.")
            counts[item] = len(support)
            values.append(solution.ravel().astype(np.float32))
        near.append(found.astype(np.int32))
    offsets = np.concatenate(([0], np.cumsum(counts)))
    by_column = sparse.csc_array((np.concatenate(values), np.concatenate(near), offsets), shape=(items, items))
    return by_column.tocsr()


def _grouped(rows: NDArray[np.int64], values: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64]]]:
    """The values of each row that has any; ``rows`` ascend."""
    found, starts = np.unique(rows, return_index=True)
    return list(zip(found.tolist(), np.split(values, starts[1:]), strict=True)) if len(found) else []
