"""The operations of TensorFlow 1 that the released programs of DiffNet and DiffNet++ use, on torch and at once.

TensorFlow 1 no longer installs. `imitation` makes a module that these programs import in its place, so that their own
lines build the graph: every operation computes at once, and gradients are torch's. Formulas are those of TensorFlow's
documentation: population variance in ``moments``, slope .2 in ``leaky_relu``, half the sum of squares in ``l2_loss``,
Glorot's uniform initialisation in ``Dense``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.parity.released import module


class SparseTensor(NamedTuple):
    indices: Tensor  # (edges, 2)
    values: Tensor  # (edges,)
    dense_shape: Any


class Dense:
    """A dense layer, whose kernel is made when it is first called."""

    def __init__(self, units: int, activation: Callable[[Tensor], Tensor], name: str) -> None:
        self.units, self.activation, self.name = units, activation, name
        self.variables: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        if not self.variables:
            kernel = nn.init.xavier_uniform_(torch.empty(x.shape[1], self.units))
            bias = 0.1 * torch.randn(self.units)  # zeros there; a bias that is zero would hide an error
            self.variables = [_variable(kernel, f"{self.name}/kernel"), _variable(bias, f"{self.name}/bias")]
        kernel, bias = self.variables
        return self.activation(x @ kernel + bias)


def imitation(fed: Iterable[Tensor]) -> tuple[ModuleType, list[Tensor]]:
    """The module, and a list that the program's variables outside layers enter in the order in which it makes them.

    Args:
        fed: what the placeholders hold, in the order in which the program makes them.
    """
    feeds, variables = iter(fed), []

    def variable(value: Tensor, name: str = "") -> Tensor:
        variables.append(_variable(value, name))
        return variables[-1]

    optimizer = SimpleNamespace(minimize=lambda loss: None)
    activations = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "leaky_relu": lambda x: F.leaky_relu(x, 0.2)}
    made = module(
        "tensorflow",
        float32=torch.float32,
        Variable=variable,
        placeholder=lambda *_: next(feeds),
        constant=lambda value, dtype: torch.as_tensor(np.asarray(value), dtype=dtype),
        random_normal=lambda shape, stddev: torch.randn(shape) * stddev,
        SparseTensor=lambda indices, values, dense_shape: SparseTensor(
            torch.as_tensor(np.asarray(indices)), torch.as_tensor(values, dtype=torch.float32), dense_shape
        ),
        sparse_tensor_dense_matmul=_sparse_times_dense,
        sparse=SimpleNamespace(softmax=_sparse_softmax),
        layers=SimpleNamespace(Dense=Dense),
        math=SimpleNamespace(exp=torch.exp),
        nn=SimpleNamespace(moments=_moments, l2_loss=lambda x: x.square().sum() / 2, **activations),
        train=SimpleNamespace(AdamOptimizer=lambda rate: optimizer, Saver=lambda of: None),
        concat=lambda parts, axis: torch.cat(parts, axis),
        div=torch.div,
        gather_nd=lambda x, index: x[index[:, 0]],
        multiply=torch.mul,
        reduce_sum=lambda x, axis, keepdims=False: x.sum(axis, keepdim=keepdims),
        reshape=torch.reshape,
        sigmoid=torch.sigmoid,
        slice=lambda x, begin, size: x[tuple(slice(b, b + s) for b, s in zip(begin, size, strict=True))],
        sqrt=torch.sqrt,
        global_variables_initializer=lambda: None,
    )
    made.compat = SimpleNamespace(v1=made)  # pyright: ignore[reportAttributeAccessIssue]
    return made, variables


def _variable(value: Tensor, name: str) -> Tensor:
    made = value.detach().clone().requires_grad_()
    made.op = SimpleNamespace(name=name)  # type: ignore[attr-defined]
    return made


def _moments(x: Tensor, axes: Any) -> tuple[Tensor, Tensor]:
    return x.mean(axes), x.var(axes, correction=0)


def _sparse_times_dense(matrix: SparseTensor, x: Tensor) -> Tensor:
    rows, columns = matrix.indices.T
    messages = matrix.values[:, None] * x[columns]
    return torch.zeros(int(matrix.dense_shape[0]), x.shape[1]).index_add(0, rows, messages)


def _sparse_softmax(matrix: SparseTensor) -> SparseTensor:
    rows, powers = matrix.indices[:, 0], matrix.values.exp()
    sums = torch.zeros(int(matrix.dense_shape[0])).index_add(0, rows, powers)
    return matrix._replace(values=powers / sums[rows])
