"""What models of item-item weights share: the weights of the row that they read, near items, and dense algebra."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from scipy.linalg import get_lapack_funcs
from torch import Tensor

from rediffuse.batching.matrix import largest, rows_at_once, shape_of, weighted_bags
from rediffuse.batching.recency import BY_TIME, InputWeighting, check_weighting, interaction_weights
from rediffuse.config import ClosedFormConfig
from rediffuse.data.histories import Histories
from rediffuse.errors import TrainingError
from rediffuse.models.base import Model, TrainingData

# LAPACK libraries count in 32 bits, and some of them crash where a matrix has more bytes than that (there was a
# segmentation fault at 37,868 items). Its work grows with the cube of the items, too: minutes at this size.
DENSE_ITEMS = 23_170
# Items whose similarities to all others are in memory at once.
BLOCK = 1024


class ItemItemConfig(ClosedFormConfig):
    """Options of the row that is scored. The weights between items are learned from a binary matrix all the same."""

    input_weighting: InputWeighting = Field(
        "none",
        description="Weight recent interactions more when scoring: none, order (0.1 to 1), interval (the same by "
        "time), half_life_events or half_life_days.",
    )
    half_life: float = Field(10.0, gt=0, description="Of the weight, in interactions or days, by input_weighting.")


class ItemItemModel(Model):
    """A user's weighted row times weights between items."""

    Config = ItemItemConfig
    config: ItemItemConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False
    holds_users = False

    @property
    def reads_times(self) -> bool:  # type: ignore[override]
        return self.config.input_weighting in BY_TIME

    def check(self, data: TrainingData) -> None:
        check_weighting(self.config.input_weighting, data.train, data.has_timestamps, "input_weighting")

    def row_bags(self, histories: Histories, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The distinct items of each row and their weights; see `rediffuse.batching.matrix.weighted_bags`."""
        config = self.config
        weights = interaction_weights(histories, config.input_weighting, half_life=config.half_life)
        return weighted_bags(histories, self.num_items, weights, device)


def nearest_items(
    matrix: sparse.csr_array, kept: int, shrinkage: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """The nearest items of each item, by shrunk cosine, in blocks of items.

    Args:
        matrix: (users, items) binary.
        kept: items per item, at most.
        shrinkage: see `rediffuse.models.baselines.itemknn`.

    Yields:
        Item, place (from 0, nearest first; ties by item number), near item and similarity of each pair.
    """
    norms = np.sqrt(np.ravel(matrix.sum(axis=0)))
    transposed, items = sparse.csr_array(matrix.T), shape_of(matrix)[1]
    step = rows_at_once(items, BLOCK)
    for start in range(0, items, step):
        common = sparse.csr_array(transposed[start : start + step] @ matrix)
        rows = np.repeat(np.arange(start, min(start + step, items)), np.diff(common.indptr))
        common.data /= norms[rows] * norms[common.indices] + np.float32(shrinkage)
        common.data[rows == common.indices] = 0
        rows, places, columns, values = largest(common, kept)
        yield rows + start, places, columns, values


def sparse_scores(
    bags: tuple[Tensor, Tensor, Tensor, Tensor], offsets: Tensor, columns: Tensor, weights: Tensor, num_items: int
) -> Tensor:
    """(rows, num_items) float32: rows of items times a sparse item-item matrix.

    Args:
        bags: the rows, as `ItemItemModel.row_bags` gives them.
        offsets, columns, weights: the matrix as compressed sparse rows: (num_items + 1,) int64, (n,) int32, (n,).
        num_items: columns of the scores.
    """
    items, _, counts, values = bags
    lengths = offsets[items + 1] - offsets[items]
    begins = torch.cumsum(lengths, 0) - lengths
    source = torch.repeat_interleave(offsets[items] - begins, lengths)
    source += torch.arange(len(source), device=source.device)
    rows = torch.repeat_interleave(torch.arange(len(counts), device=items.device), counts)
    at = torch.repeat_interleave(rows * num_items, lengths) + columns[source]
    scores = torch.zeros(len(counts) * num_items, device=weights.device)
    scores.index_add_(0, at, weights[source] * torch.repeat_interleave(values, lengths))
    return scores.view(len(counts), num_items)


def invert(gram: NDArray[np.float32], name: str, regularization: float) -> NDArray[np.float32]:
    """The inverse of a symmetric positive definite matrix, in its own memory.

    Args:
        gram: (n, n) float32 in column order; only its lower triangle is read, and it is overwritten.
        name: name of the model, for the message.
        regularization: its option of that name, for the message.

    Returns:
        (n, n) of which only the lower triangle is filled.

    Raises:
        TrainingError: the matrix is not positive definite in single precision.
    """
    potrf, potri = get_lapack_funcs(("potrf", "potri"), (gram,))
    factor, failed = potrf(gram, lower=1, clean=0, overwrite_a=1)
    inverse, failed_too = potri(factor, lower=1, overwrite_c=1)
    if failed or failed_too:
        raise TrainingError(
            f"The item matrix of {name} is not positive definite in single precision.",
            f"Raise regularization (it is {regularization:g}).",
        )
    return inverse


def gram_matrix(matrix: sparse.csr_array) -> NDArray[np.float32]:
    """(items, items) float32 X^T X of a sparse X (users, items), in LAPACK's column order, which `invert` needs."""
    _, items = shape_of(matrix)
    gram = np.zeros((items, items), dtype=np.float32, order="F")
    transposed = sparse.csr_array(matrix.T)
    for start in range(0, items, BLOCK):
        gram[:, start : start + BLOCK] = (transposed[start : start + BLOCK] @ matrix).toarray().T
    return gram
