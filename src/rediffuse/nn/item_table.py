"""The table of item vectors: a vector of its own for each item, and what the content of the item adds to it.

    v_i = k_i e_i + W f_i

e_i is learned for the item alone, f_i is its content and W is learned for all. k_i is 0 for items without an
interaction in training, so such an item is its content alone. In training, k_i is also 0 with the probability
``id_dropout``, because otherwise e_i would learn what W f_i can say (DropoutNet, Volkovs et al., NeurIPS 2017).

A table may also lie in the memory of several processes. Sequence models call only what such a table has too:
``device``, ``sparse``, `ItemTable.initialise`, `ItemTable.fetch`, `ItemTable.forward`, `ItemTable.nearby` and
`ItemTable.mean_square`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.nn.sized import with_rows
from rediffuse.nn.sparse import SparseMatrix, add_empty_rows

_WEIGHTS = ("sparse_weight", "dense_weight")


class ItemContent(nn.Module):
    """The content of each row of an item table, and its projection W f_i.

    Args:
        rows: rows of the item table.
        widths: columns of the sparse and of the dense part.
        size: width of the item vectors.
    """

    sparse: SparseMatrix
    dense: Tensor
    learned: Tensor
    sparse_weight: Tensor
    dense_weight: Tensor

    def __init__(self, rows: int, widths: tuple[int, int], size: int) -> None:
        super().__init__()
        self.sparse = SparseMatrix(rows, widths[0])
        self.register_buffer("dense", torch.zeros(rows, widths[1]))
        self.register_buffer("learned", torch.zeros(rows, dtype=torch.bool))  # whether the row has a vector of its own
        self.sparse_weight, self.dense_weight = (nn.Parameter(torch.zeros(width, size)) for width in widths)

    def forward(self, rows: Tensor | None) -> Tensor:
        """(n, d) W f of rows (n,); None: of all."""
        offsets, numbers, values = (
            part.value for part in (self.sparse.offsets, self.sparse.indices, self.sparse.values)
        )
        dense = self.dense if rows is None else self.dense[rows]
        if rows is not None:
            starts, counts = offsets[rows], offsets.diff()[rows]
            offsets = F.pad(counts.cumsum(0), (1, 0))
            entries = torch.arange(int(offsets[-1]), device=rows.device)
            entries = entries + torch.repeat_interleave(starts - offsets[:-1], counts)
            numbers, values = numbers[entries], values[entries]
        # In single precision: the sum is added to a vector that is trained in single precision.
        with torch.autocast(dense.device.type, enabled=False):
            of_sparse = F.embedding_bag(
                numbers.long(),
                self.sparse_weight,
                offsets,
                mode="sum",
                per_sample_weights=values,
                include_last_offset=True,
            )
            return of_sparse + dense @ self.dense_weight

    def add_rows(self, state: dict[str, Tensor], prefix: str, at: int, added: int) -> None:
        """Insert rows without content before row ``at`` into a state dict of this content."""
        for name in ("dense", "learned"):
            state[prefix + name] = with_rows(state[prefix + name], at, added)
        add_empty_rows(state, f"{prefix}sparse.", at, added)

    def describe_added(self, matrix: sparse.csr_array, dense: NDArray[np.float32], at: int) -> None:
        """Give the rows from ``at`` on, which have no content, that of n items: (n, columns), in two parts."""
        before, end = self.sparse.csr, at + len(dense)
        self.sparse.set(sparse.csr_array(sparse.vstack((before[:at], matrix, before[end:]), format="csr")))
        self.dense[at:end] = torch.from_numpy(dense).to(self.dense.device)


class ItemTable(nn.Embedding):
    """Item vectors, an `nn.Embedding` until it `describe`\\ s the items by their content.

    Args:
        rows: items, and one more where there is a padding item.
        size: width of a vector.
        sparse: whether the gradient of the items' own vectors is sparse.
    """

    def __init__(self, rows: int, size: int, *, sparse: bool = False) -> None:
        super().__init__(rows, size, sparse=sparse)
        self.id_dropout = 0.0
        self.content: ItemContent | None = None

    @property
    def device(self) -> torch.device:
        """Where the vectors are."""
        return self.weight.device

    def initialise(self, std: float) -> None:
        """Draw the vectors from a normal distribution around 0."""
        nn.init.normal_(self.weight, std=std)

    def fetch(self, *items: Tensor) -> None:
        """Announce the only items that are read until the next call; a table that lies elsewhere fetches them."""

    def nearby(self, *items: Tensor) -> tuple[Tensor, ...]:
        """A table (m, d) with the rows of all fetched items, differentiable; and the row in it of each of ``items``."""
        return self.all(), *items

    def mean_square(self, count: int, space: Callable[[Tensor], Tensor]) -> float:
        """The mean square of the elements of the first ``count`` vectors, taken to another ``space``."""
        return float(space(self.all()[:count].float()).square().mean())

    def describe(
        self, matrix: sparse.csr_array, dense: NDArray[np.float32], learned: NDArray[np.bool_], id_dropout: float
    ) -> None:
        """Add content, whose projection is drawn at random on the scale of the vectors.

        Args:
            matrix, dense: (n, columns) content of the first n rows, in two parts; other rows have none.
            learned: (n,) whether the item has an interaction in training.
            id_dropout: probability that an item is its content alone, in training.
        """
        self.id_dropout = id_dropout
        rows, size = self.weight.shape
        width: int = matrix.shape[1]  # pyright: ignore
        content = ItemContent(rows, (width, dense.shape[1]), size)
        empty = np.full(rows - len(dense), matrix.nnz, dtype=matrix.indptr.dtype)
        offsets = np.concatenate((matrix.indptr, empty))
        # Copies, because the state of a model must not hold an array twice.
        copied = matrix.data.copy(), matrix.indices.copy(), offsets
        content.sparse.set(sparse.csr_array(copied, shape=(rows, width)))
        content.dense[: len(dense)] = torch.from_numpy(dense)
        content.learned[: len(learned)] = torch.from_numpy(learned)
        for name in _WEIGHTS:
            nn.init.normal_(getattr(content, name), std=float(self.weight.detach().std()))
        self.content = content.to(self.weight.device)

    def add_rows(self, state: dict[str, Tensor], prefix: str, at: int, added: int) -> None:
        """Insert rows of zeros before row ``at`` into a state dict of this table: items that are not described yet."""
        state[f"{prefix}weight"] = with_rows(state[f"{prefix}weight"], at, added)
        if self.content is not None:
            self.content.add_rows(state, f"{prefix}content.", at, added)

    def bake(self) -> None:
        """Replace the parts by their sum, for inference without content."""
        self.weight = nn.Parameter(self.all().detach(), requires_grad=False)
        self.content = None

    def forward(self, items: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.content is None:
            return super().forward(items)
        distinct, places = torch.unique(items, return_inverse=True)
        return F.embedding(places, self._vectors(distinct))

    def all(self) -> Tensor:
        """(rows, d) all vectors."""
        return self.weight if self.content is None else self._vectors(None)

    def _vectors(self, rows: Tensor | None) -> Tensor:
        assert self.content is not None
        own = self.weight if rows is None else super().forward(rows)
        kept = self.content.learned if rows is None else self.content.learned[rows]
        if self.training and self.id_dropout:
            kept = kept & (torch.rand(len(kept), device=kept.device) >= self.id_dropout)
        return torch.where(kept[:, None], own, 0.0) + self.content(rows)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        # Before the loading of the submodules, of which content is one.
        parts = [state_dict.get(f"{prefix}content.{name}") for name in (*_WEIGHTS, "dense")]
        if self.content is None and all(part is not None and part.dim() == 2 for part in parts):
            of_sparse, of_dense, _ = parts
            self.content = ItemContent(len(self.weight), (len(of_sparse), len(of_dense)), self.embedding_dim)  # pyright: ignore
        super()._load_from_state_dict(state_dict, prefix, *others)


_make: ContextVar[Callable[..., Any]] = ContextVar("item_table", default=ItemTable)


def item_table(rows: int, size: int, *, sparse: bool) -> ItemTable:
    """A new item table: an `ItemTable`, or what `item_tables_from` says."""
    return _make.get()(rows, size, sparse=sparse)


@contextlib.contextmanager
def item_tables_from(make: Callable[..., Any]) -> Iterator[None]:
    """Within the context, sequence models get their tables from ``make``, which takes the arguments of `item_table`."""
    token = _make.set(make)
    try:
        yield
    finally:
        _make.reset(token)
