"""heat: filters on the graph of users and items, without training (`rediffuse.graphs.filters`).

R is the binary users x items matrix, with degrees D_u and D_i; R_hat = D_u^-y R D_i^-z, and S = R_hat' R_hat, divided
by its largest eigenvalue where the exponents are not 1/2. The scores of a history x are

    (x D_i^-b) g(S) D_i^b

with a filter g: one hop (LinkProp, Fu et al., WSDM 2022), heat, personalised PageRank, GF-CF (Shen et al., CIKM 2021),
BSPM (Choi et al., SIGIR 2023), ChebyCF (Kim et al., SIGIR 2025) or Turbo-CF (Park et al., SIGIR 2024). S is never
stored: a hop is a product with R_hat' and one with R_hat, in memory of the size of the interactions. Only the filter
turbo and the option ``neighbours`` need S itself, as a sparse matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor

from rediffuse.batching.matrix import binary_matrix
from rediffuse.data.histories import Histories
from rediffuse.graphs import filters
from rediffuse.graphs.item_graph import cooccurrence, power, scaled, singular_vectors
from rediffuse.models.base import TrainingData
from rediffuse.models.propagation import Inputs, PropagationConfig, PropagationModel, Settings
from rediffuse.nn.sized import SizedByData
from rediffuse.nn.sparse import SparseMatrix

# Filters with an ideal low-pass part.
LOW_PASS = ("gfcf", "bspm", "chebyshev")


class HeatConfig(PropagationConfig):
    """Options of heat. Null options are chosen on validation data; those of other filters have no effect."""

    filter: Literal["one_hop", "heat", "ppr", "gfcf", "bspm", "chebyshev", "turbo"] = "heat"
    diffusion: bool = Field(True, description="False: one hop in place of the filter. The ablation.")
    user_exponent: float = Field(0.5, ge=0, le=1, description="Exponent y of the degree of users.")
    item_exponent: float = Field(0.5, ge=0, le=1, description="Exponent z of the degree of items.")
    degree_exponent: float | None = Field(None, ge=0, le=1, description="Exponent b, before and after the filter.")
    time: float | None = Field(None, gt=0, le=20, description="heat: time. bspm: how long the signal is sharpened.")
    continuation: float | None = Field(None, ge=0, lt=1, description="ppr: probability of another hop.")
    low_pass_weight: float | None = Field(None, ge=0, description="gfcf, bspm, chebyshev: weight of the low-pass part.")
    rank: int = Field(256, ge=1, description="gfcf, bspm, chebyshev: singular vectors of the low-pass part.")
    solver: Literal["euler", "rk4"] = Field("rk4", description="bspm: solver of the sharpening.")
    solver_steps: int = Field(1, ge=1, description="bspm: steps of the solver.")
    merge: Literal["early", "late"] = Field("early", description="bspm: sharpen the low-pass part too, or not.")
    flatness: float | None = Field(None, gt=0, description="chebyshev: exponent phi of the plateau.")
    element_power: float | None = Field(None, gt=0, description="turbo: power of each element of S.")
    turbo_order: Literal[1, 2] = Field(1, description="turbo: P, or 2 P - P^2.")
    neighbours: int | None = Field(
        None, ge=1, description="Items kept per item of S, which is then stored. Null: all; only turbo stores S."
    )


class Heat(PropagationModel):
    """A filter on the graph of users and items: the history spreads from item to item over shared users, untrained.

    It holds the training interactions as a sparse matrix, and singular vectors for filters with a low-pass part.
    """

    name = "heat"
    Config = HeatConfig
    config: HeatConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    degrees: Tensor

    def __init__(self, config: HeatConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.interactions = SparseMatrix(num_users, num_items)  # R_hat
        self.item_graph = SparseMatrix(num_items, num_items)  # S, where it is stored
        self.low_pass = SizedByData(rows=num_items, trained=False)  # (I, rank) V
        self.register_buffer("degrees", torch.zeros(num_items))  # users of each item

    @property
    def filter(self) -> str:
        """The filter in use."""
        return self.config.filter if self.config.diffusion else "one_hop"

    @property
    def stores_graph(self) -> bool:
        """Whether S is stored."""
        return self.config.neighbours is not None or self.filter == "turbo"

    def stages(self) -> list[dict[str, tuple[Any, ...]]]:
        exponents = {"degree_exponent": (0.5, 0.0, 0.25)}
        weights = {"low_pass_weight": (0.3, 0.0, 0.1, 1.0)}
        return {
            "one_hop": [exponents],
            "heat": [exponents | {"time": (1.0, 0.25, 0.5, 2.0, 4.0)}],
            "ppr": [exponents | {"continuation": (0.3, 0.1, 0.5, 0.7)}],
            "gfcf": [{"degree_exponent": (0.0, 0.25, 0.5)} | weights],
            "bspm": [{"time": (1.0, 0.5, 2.0)} | weights, {"degree_exponent": (0.0, 0.25, 0.5)}],
            "chebyshev": [{"flatness": (1.5, 4.0, 10.0)} | weights, {"degree_exponent": (0.2, 0.0, 0.4)}],
            "turbo": [{"element_power": (1.0, 0.7, 1.4)}, {"degree_exponent": (0.0, 0.25, 0.5)}],
        }[self.filter]

    # --- fitting -------------------------------------------------------------------------------------------

    def derive(self, data: TrainingData) -> None:
        config = self.config
        matrix = binary_matrix(data.train, self.num_items)
        of_users, of_items = np.diff(matrix.indptr), np.ravel(matrix.sum(axis=0))
        self.degrees.copy_(torch.from_numpy(of_items.astype(np.float32)))
        item_scale = power(of_items, -config.item_exponent)
        if self.stores_graph:
            graph = cooccurrence(
                matrix,
                power(of_users, -2 * config.user_exponent),
                neighbours=config.neighbours,
                column_weights=item_scale,
            )
            self.item_graph.set(scaled(graph.matrix, item_scale, item_scale))
            self.dropped = {"item_graph": graph.dropped}
        normalised = scaled(matrix, power(of_users, -config.user_exponent), item_scale)
        if self.filter != "turbo" and (config.user_exponent, config.item_exponent) != (0.5, 0.5):
            largest = singular_vectors(normalised, 1)[0][0]
            normalised = normalised / np.float32(largest)
            if self.stores_graph:
                self.item_graph.set(self.item_graph.csr / np.float32(largest**2))
        if not self.stores_graph:
            self.interactions.set(normalised)
        if self.filter in LOW_PASS:
            self.low_pass.set(torch.from_numpy(singular_vectors(normalised, config.rank)[1]))

    def map_matrix(self) -> sparse.csr_array:
        return self.item_graph.csr if self.stores_graph else self.interactions.csr

    # --- scoring -------------------------------------------------------------------------------------------

    def inputs(self, histories: Histories, settings: Settings) -> Inputs:
        return {"history": binary_matrix(histories, self.num_items)}

    def terms(self, inputs: Inputs, settings: Settings) -> Iterator[tuple[str, Any]]:
        exponent = settings["degree_exponent"]
        degrees = self.degrees.cpu().numpy()
        before, after = (power(degrees, e).astype(np.float32) for e in (-exponent, exponent))
        signal = inputs["history"].toarray() * before
        for label, term in self._filtered(self.hop(settings), signal, settings):
            yield label, term * after

    def hop(self, settings: Settings) -> filters.Hop:
        """x -> x S."""
        if self.stores_graph:
            graph = self.item_graph.csr
            if self.filter == "turbo":
                values = graph.data ** np.float32(settings["element_power"])
                graph = sparse.csr_array((values, graph.indices, graph.indptr), shape=graph.shape)
            return lambda x: np.asarray(x @ graph)
        matrix = self.interactions.csr
        transposed = matrix.T  # the same arrays, by columns
        return lambda x: np.asarray((x @ transposed) @ matrix)

    def _filtered(self, hop: filters.Hop, x: filters.Signal, settings: Settings) -> filters.Terms:
        """The terms of the filter in use."""
        config, exponent = self.config, settings["degree_exponent"]
        if self.filter == "one_hop":
            return filters.one_hop(hop, x)
        if self.filter == "heat":
            return filters.heat(hop, x, settings["time"])
        if self.filter == "ppr":
            return filters.ppr(hop, x, settings["continuation"])
        if self.filter == "turbo":
            return filters.turbo(hop, x, config.turbo_order)
        # ChebyCF scales its low-pass part like the rest; in GF-CF and BSPM it always has the exponent 1/2.
        low_pass = self._low_pass(0.0 if self.filter == "chebyshev" else exponent - 0.5)
        weight = settings["low_pass_weight"]
        if self.filter == "gfcf":
            return filters.gfcf(hop, x, low_pass, weight)
        if self.filter == "chebyshev":
            return filters.chebyshev(hop, x, low_pass, weight, flatness=settings["flatness"])
        return filters.bspm(
            hop,
            x,
            low_pass,
            weight,
            time=settings["time"],
            steps=config.solver_steps,
            solver=config.solver,
            merge=config.merge,
        )

    def _low_pass(self, exponent: float) -> filters.Hop:
        """x -> (x D_i^exponent) V V' D_i^-exponent."""
        vectors, degrees = self.low_pass.value.cpu().numpy(), self.degrees.cpu().numpy()
        before, after = (power(degrees, e).astype(np.float32) for e in (exponent, -exponent))
        return lambda x: (((x * before) @ vectors) @ vectors.T) * after
