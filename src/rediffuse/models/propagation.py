"""The base of models that spread a user's history over a graph of items, in closed form.

A score is a sum over the items of the history and over the ways in which their mass arrives, times a prior of the item,
plus a constant of the item. So it can be explained exactly. Options that are left at null are chosen on validation
data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor

from rediffuse.config import ClosedFormConfig
from rediffuse.data.histories import Histories
from rediffuse.graphs.item_graph import ItemGraph, singular_vectors
from rediffuse.models.base import Contribution, Model, TrainingData, Validation, is_clearly_better
from rediffuse.models.sampling import Sampling
from rediffuse.nn.sparse import add_empty_rows

# The options of a model, with a value for each that was null.
Settings = dict[str, Any]
# Scores held at once where each item of a history has a row of its own.
BLOCK_SCORES = 4_000_000
# Item vectors for similar items and the item map have so many dimensions.
MAP_DIMENSIONS = 32
# Rows of weights of items, by the way in which they enter the graph.
Inputs = Mapping[str, sparse.csr_array]


class PropagationConfig(ClosedFormConfig):
    """Options of a model that spreads the history over a graph. Null options are chosen on validation data."""

    metric: str = Field(
        "ndcg@10/unseen",
        description="The validation metric that options are chosen by; without /unseen, seen items are kept.",
    )
    refit: bool = Field(True, description="After the choices, learn from the validation interactions too.")
    seen_weight: float | None = Field(
        None,
        ge=0,
        description="Factor on the scores of items of the history. Null: 0 or 1, by the metric with seen items kept.",
    )


class PropagationModel(Model):
    """A model whose scores are sums over the history, times a prior.

    Subclasses implement `stages`, `item_graphs` and `derive`, `inputs`, `terms`, `map_matrix` and, if they have one,
    `prior`.

    ``item_matrices`` names those of its sparse matrices that have a row and a column for each item.

    Attributes:
        settings: the options in use.
        dropped: share of the mass of each graph that truncation left out; known after `fit`.
    """

    Config = PropagationConfig
    config: PropagationConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False
    on_cpu = True
    explains_scores = True
    item_matrices: ClassVar[tuple[str, ...]] = ()
    settings: Settings
    dropped: dict[str, float]

    def __init__(self, config: PropagationConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.resolve({})

    # --- the model -----------------------------------------------------------------------------------------

    def stages(self) -> list[dict[str, tuple[Any, ...]]]:
        """What is chosen together, in order: option -> its starting value, then other choices.

        Each stage tries all combinations of its options that are null.
        """
        return []

    def inputs(self, histories: Histories, settings: Settings) -> Inputs:
        """The weights of the items of B histories: sparse rows (B, num_items), by the way in which they enter."""
        raise NotImplementedError

    def terms(self, inputs: Inputs, settings: Settings) -> Iterator[tuple[str, Any]]:
        """What the inputs give to every item: a label, and (B, num_items) dense or sparse. Linear in the inputs."""
        raise NotImplementedError

    def prior(self, settings: Settings) -> tuple[NDArray[np.float32] | float, NDArray[np.float32] | float]:
        """(num_items,) what the sum of the terms is multiplied by, and what is added to the product."""
        return 1.0, 0.0

    # --- fitting -------------------------------------------------------------------------------------------

    def item_graphs(self, train: Histories) -> dict[str, ItemGraph]:
        """The graphs that are sums over users: name of a `SparseMatrix` of this model -> its graph of ``train``."""
        return {}

    def derive(self, data: TrainingData) -> None:
        """Store what follows from the data and from the graphs, which are stored already."""

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        self._store(self.item_graphs(data.train), data)

    def update(self, data: TrainingData, earlier: Model, before: Histories, changed: NDArray[np.int64]) -> None:
        """Fit from the graphs of an earlier model: what the changed users gave is taken out, what they give is added.

        Graphs that were truncated are built again.
        """
        assert isinstance(earlier, PropagationModel)
        if any(earlier.dropped.values()) or getattr(self.config, "neighbours", None) is not None:
            return self.fit(data)
        super().fit(data)
        removed, added = self.item_graphs(before.take(changed)), self.item_graphs(data.train.take(changed))
        graphs = {}
        for name, graph in added.items():
            total = resized(getattr(earlier, name).csr, self.num_items) - removed[name].matrix + graph.matrix
            graphs[name] = ItemGraph(sparse.csr_array(total), 0.0)
        self._store(graphs, data)
        return None

    def _store(self, graphs: dict[str, ItemGraph], data: TrainingData) -> None:
        self.dropped = {name: graph.dropped for name, graph in graphs.items()}
        for name, graph in graphs.items():
            getattr(self, name).set(graph.matrix)
        self.derive(data)

    def add_item_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        super().add_item_rows(state, prefix, added)
        for name in self.item_matrices:
            if len(state[f"{prefix}{name}.offsets.value"]):
                add_empty_rows(state, f"{prefix}{name}.", self.num_items, added)

    # --- choices -------------------------------------------------------------------------------------------

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Choose the options that are null, stage by stage.

        A choice replaces the starting value only if it is better by more than the standard error of the difference
        over users: among choices that are as good, the usual one generalises better.
        """
        curve: list[dict[str, Any]] = []
        for stage in self.open_stages():
            curve += self._choose(stage, validate, self.config.metric)
        if self.config.seen_weight is None:
            curve += self._choose({"seen_weight": (1.0, 0.0)}, validate, self.config.metric.removesuffix("/unseen"))
        chosen = {option: self.settings[option] for option in self.null_options()}
        return {"settings": chosen, "curve": curve, "dropped": self.dropped}

    def _choose(self, stage: dict[str, tuple[Any, ...]], validate: Validation, metric: str) -> list[dict[str, Any]]:
        """Try all combinations of a stage and keep the best; returns one record per combination."""
        tried = [self.settings | dict(zip(stage, values, strict=True)) for values in itertools.product(*stage.values())]
        values = validate.compare(lambda rows, users: self.scores_of(rows, users, tried), metric)
        means = [float(of_users.mean()) for of_users in values]
        best = int(np.argmax(means))
        self.settings = tried[best if is_clearly_better(values[best], values[0], validate.owners) else 0]
        return [
            {**{option: settings[option] for option in stage}, metric: mean, "chosen": settings is self.settings}
            for settings, mean in zip(tried, means, strict=True)
        ]

    def open_stages(self) -> list[dict[str, tuple[Any, ...]]]:
        """The stages, with those options alone that are null."""
        null = self.null_options()
        stages = [{option: values for option, values in stage.items() if option in null} for stage in self.stages()]
        return [stage for stage in stages if stage]

    def null_options(self) -> list[str]:
        """The options that are null in the config, and can be chosen."""
        options = dict.fromkeys(option for stage in self.stages() for option in stage)
        return [option for option in (*options, "seen_weight") if getattr(self.config, option) is None]

    def resolve(self, resolved: dict[str, Any]) -> None:
        start: Settings = {"seen_weight": 1.0}
        for stage in self.stages():
            start |= {option: values[0] for option, values in stage.items()}
        options = self.config.model_dump()
        given = {option: value for option, value in options.items() if value is not None or option not in start}
        self.dropped = resolved.get("dropped", {})
        self.settings = start | resolved.get("settings", {}) | given

    def scores_of(self, histories: Histories, users: NDArray[np.int64], tried: list[Settings]) -> Iterator[Tensor]:
        """The scores (B, num_items) of every setting, in order; histories that are empty get the fallback."""
        known = np.flatnonzero(histories.lengths)
        rows = histories.take(known)
        for settings, scores in zip(tried, self.all_scores(rows, tried), strict=True):
            found = torch.from_numpy(scores)
            if len(known) == len(histories):
                yield found
            else:
                every = self.stranger_scores(settings).repeat(len(histories), 1)
                every[torch.from_numpy(known)] = found
                yield every

    def stranger_scores(self, settings: Settings) -> Tensor:
        """(num_items,) scores of users without a history."""
        return self.fallback.cpu()

    def all_scores(self, histories: Histories, tried: list[Settings]) -> Iterator[NDArray[np.float32]]:
        """The scores of every setting for histories that are not empty. Overridden where settings share products."""
        for settings in tried:
            yield self.combined(histories, self.terms(self.inputs(histories, settings), settings), settings)

    # --- scoring -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.fallback.copy_(self.stranger_scores(self.settings))

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        scores = next(self.all_scores(histories, [self.settings]))
        return torch.from_numpy(scores).to(self.fallback.device)

    def combined(
        self, histories: Histories, terms: Iterator[tuple[str, Any]], settings: Settings
    ) -> NDArray[np.float32]:
        """(B, num_items) scores from the terms."""
        total: Any = None
        for _, term in terms:
            total = term if total is None else total + term
        factor, added = self.prior(settings)
        scores = np.asarray(total.toarray() if sparse.issparse(total) else total)
        return self.weigh_seen((scores * factor + added).astype(np.float32), histories, settings)

    def weigh_seen(self, scores: NDArray[np.float32], histories: Histories, settings: Settings) -> NDArray[np.float32]:
        """Multiply the scores (B, num_items) of the items of each history by `seen_weight`, in place."""
        if settings["seen_weight"] != 1:
            entries = np.unique(histories.owners * self.num_items + histories.items)
            scores[entries // self.num_items, entries % self.num_items] *= np.float32(settings["seen_weight"])
        return scores

    # --- vectors -------------------------------------------------------------------------------------------

    def map_matrix(self) -> sparse.csr_array:
        """A matrix (rows, num_items) whose right singular vectors relate items."""
        raise NotImplementedError

    def map_vectors(self) -> Tensor:
        """(num_items, d) the top right singular vectors of `map_matrix`, each times the root of its singular value."""
        values, vectors = singular_vectors(self.map_matrix(), MAP_DIMENSIONS)
        return torch.from_numpy(vectors * np.sqrt(values))

    def item_neighbours(self, items: NDArray[np.int64]) -> Tensor:
        """The mass that reaches every item from one of ``items`` alone, before the prior."""
        alone = Histories(np.arange(len(items) + 1), items.astype(np.int32))
        total = sum(term for _, term in self.terms(self.inputs(alone, self.settings), self.settings))
        dense = total.toarray() if sparse.issparse(total) else total  # pyright: ignore[reportAttributeAccessIssue]
        return torch.from_numpy(np.asarray(dense, dtype=np.float32))

    # --- explanations --------------------------------------------------------------------------------------

    def contributions(
        self, histories: Histories, users: NDArray[np.int64], items: NDArray[np.int64]
    ) -> list[Contribution]:
        settings = self.settings
        if not len(histories.items):
            return [Contribution(-1, self.fallback_name, self.fallback.cpu().numpy()[items].astype(np.float64))]
        inputs = self.inputs(histories, settings)
        sources = np.unique(histories.items).astype(np.int64)
        factor, added = (np.broadcast_to(part, self.num_items)[items] for part in self.prior(settings))
        seen = np.where(np.isin(items, sources), settings["seen_weight"], 1.0)
        found = []
        at_once = max(1, BLOCK_SCORES // self.num_items)
        for some in np.split(sources, range(at_once, len(sources), at_once)):
            apart = {name: _one_item_a_row(row, some) for name, row in inputs.items()}
            for label, term in self.terms(apart, settings):
                values = term[:, items]
                values = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
                values = values * factor * seen
                reached = np.flatnonzero(values.any(axis=1))
                found += [Contribution(int(some[row]), label, values[row]) for row in reached]
        if added.any():
            found.append(Contribution(-1, self.fallback_name, added.astype(np.float64) * seen))
        return found

    @property
    def fallback_name(self) -> str:
        """What the scores of users without a history are."""
        return "popularity"

    def hops(self, histories: Histories, users: NDArray[np.int64]) -> list[tuple[str, Tensor]]:
        settings = self.settings
        inputs = self.inputs(histories, settings)
        start = sum(inputs.values())
        steps = [("history", torch.from_numpy(np.asarray(start.toarray()[0], dtype=np.float32)))]  # pyright: ignore
        for label, term in self.terms(inputs, settings):
            dense = term.toarray() if sparse.issparse(term) else term
            steps.append((label, torch.from_numpy(np.asarray(dense[0], dtype=np.float32))))
        return [*steps, ("scores", self.score(histories, users=users)[0])]


def resized(matrix: sparse.csr_array, size: int) -> sparse.csr_array:
    """The matrix with empty rows and columns behind, up to ``size`` of each."""
    grown = np.append(matrix.indptr, np.full(size - len(matrix.indptr) + 1, matrix.nnz, dtype=matrix.indptr.dtype))
    return sparse.csr_array((matrix.data, matrix.indices, grown), shape=(size, size))


def weight_rows(histories: Histories, num_items: int, weights: NDArray[np.floating]) -> sparse.csr_array:
    """(B, num_items) float32: the sum of the weights (interactions,) of each item of a history."""
    arrays = (weights.astype(np.float32), histories.items.astype(np.int32), histories.offsets.copy())
    matrix = sparse.csr_array(arrays, shape=(len(histories), num_items))
    matrix.sum_duplicates()
    return matrix


def scale_columns(rows: sparse.csr_array, factors: NDArray[np.floating]) -> sparse.csr_array:
    """M diag(factors), float32."""
    values = (rows.data * factors[rows.indices]).astype(np.float32)
    return sparse.csr_array((values, rows.indices, rows.indptr), shape=rows.shape)


def _one_item_a_row(row: sparse.csr_array, items: NDArray[np.int64]) -> sparse.csr_array:
    """(n, I) row i has the weight of ``items[i]`` (n,) in a row (1, I), and nothing else."""
    weights = np.asarray(row.toarray()[0])[items]
    return sparse.csr_array((weights, items, np.arange(len(items) + 1)), shape=(len(items), row.shape[1]))  # pyright: ignore
