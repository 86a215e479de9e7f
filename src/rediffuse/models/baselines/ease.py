"""EASE: embarrassingly shallow autoencoders (Steck, WWW 2019): linear item-item weights in closed form.

With X the binary users x items matrix, G = X^T X + regularization * I and P = G^-1, the weights are
B = I - P / diag(P): ``B_ij = -P_ij / P_jj`` and zero on the diagonal (eq. 8). The scores of a user are their
row of X times B.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy.linalg import get_lapack_funcs
from torch import Tensor
from torch.nn import functional as F

from rediffuse.batching.matrix import bags, binary_matrix
from rediffuse.config import ClosedFormConfig, Range
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError, TrainingError
from rediffuse.models.base import Model, TrainingData
from rediffuse.models.sampling import Sampling

# Dense float32 matrices in memory at once, at most: the weights, and those that they are computed from.
COPIES = 3


class EASEConfig(ClosedFormConfig):
    """Options of EASE: the one hyper-parameter of the paper."""

    search: ClassVar = {"regularization": Range(1.0, 5000.0, log=True)}

    regularization: float = Field(250.0, gt=0, description="L2 penalty on the weights, added to the diagonal of X^T X.")


class EASE(Model):
    """Dense item-item weights (num_items, num_items) float32.

    Raises:
        ConfigError: the weights do not fit into memory; at construction, with the gibibytes that they need.
    """

    name = "ease"
    Config = EASEConfig
    config: EASEConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False
    weight: Tensor

    def __init__(self, config: EASEConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        needed, free = COPIES * 4 * num_items**2, psutil.virtual_memory().available
        if needed > free:
            raise ConfigError(
                f"EASE needs {needed / 2**30:.1f} GiB for {num_items:,} items (a dense item x item matrix), and "
                f"{free / 2**30:.1f} GiB are free.",
                "Use itemknn, which is sparse; or filter rare items with a k-core.",
            )
        self.register_buffer("weight", torch.empty(num_items, num_items))

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        matrix = binary_matrix(data.train, data.num_items)
        # In LAPACK's column order, so that it works in place, without a copy.
        gram = np.zeros((data.num_items, data.num_items), dtype=np.float32, order="F")
        transposed, step = matrix.T.tocsr(), 1024
        for start in range(0, data.num_items, step):
            gram[:, start : start + step] = (transposed[start : start + step] @ matrix).toarray().T
        gram[np.diag_indices_from(gram)] += np.float32(self.config.regularization)
        potrf, potri = get_lapack_funcs(("potrf", "potri"), (gram,))
        factor, failed = potrf(gram, lower=1, clean=0, overwrite_a=1)
        inverse, failed_too = potri(factor, lower=1, overwrite_c=1)
        if failed or failed_too:
            raise TrainingError(
                "The item matrix of EASE is not positive definite in single precision.",
                f"Raise regularization (it is {self.config.regularization:g}).",
            )
        # Only the lower triangle is filled, which is the upper one of the transpose; mirror it.
        half = torch.from_numpy(inverse.T)
        diagonal = half.diagonal().clone()
        half.triu_(1)
        weight = self.weight
        for start in range(0, data.num_items, step):
            rows = slice(start, start + step)
            weight[rows] = (-(half[rows] + half[:, rows].T) / diagonal).to(weight.device)

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        items, offsets, _ = bags(histories, self.num_items, self.weight.device)
        return F.embedding_bag(items, self.weight, offsets, mode="sum")
