"""theat: heat in time. One hop to items that share users with the history, and to items that follow its last item,
times recent popularity.

With the binary users x items matrix R, its degrees D_u and D_i, and the transition counts N:

    s = [(w . x) (D_i^-1/2 R' D_u^-y R D_i^-z + nu C) + mu x_T D_i^-1/2 N D_i^-1/2] . (g^c + .02) + 1e-6 popularity

w halves every ``half_life`` interactions back from the last, x_T is the last item, N counts which item follows which
(up to three later, halved for each in between), and g is popularity that halves every ``prior_half_life`` days, divided
by its maximum. The linear filter is that of GF-CF (Shen et al., CIKM 2021) with the exponents of LinkProp (Fu et al.,
WSDM 2022); the weights in time are ours. A user without history gets g.

Where the dataset declares item features, C leads to each item from those that are most like it in content
(`rediffuse.models.content_graph`), and an item without an interaction has the mean g of these.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor

from rediffuse.batching.matrix import binary_matrix, users_of_items
from rediffuse.batching.recency import events_since, recent_popularity
from rediffuse.data.histories import Histories
from rediffuse.errors import RediffuseWarning
from rediffuse.features import Content
from rediffuse.graphs.item_graph import ItemGraph, cooccurrence, power, scaled, transitions
from rediffuse.models.base import TrainingData
from rediffuse.models.content_graph import ContentGraph
from rediffuse.models.propagation import (
    Inputs,
    PropagationConfig,
    PropagationModel,
    Settings,
    scale_columns,
    weight_rows,
)
from rediffuse.nn.sized import SizedByData
from rediffuse.nn.sparse import SparseMatrix

# Transitions reach so many interactions ahead, and halve for each.
WINDOW, DECAY = 3, 0.5
# Added to the prior, so that an item without recent interactions can be recommended; and the weight of popularity,
# which orders the items that nothing else reaches.
FLOOR, POPULARITY = 0.02, 1e-6


class TemporalHeatConfig(PropagationConfig):
    """Options of theat. Null options are chosen on validation data."""

    half_life: float | None = Field(
        None, gt=0, description="Interactions after which the weight of an item of the history halves."
    )
    transition_weight: float | None = Field(None, ge=0, description="Weight mu of what follows the last item.")
    content_weight: float | None = Field(
        None, ge=0, description="Weight nu of what is like the history in content, where there are item features."
    )
    item_features: bool = Field(True, description="Use the features of items that the dataset declares.")
    item_exponent: float | None = Field(None, ge=0, le=1, description="Exponent z of the degree of recommended items.")
    prior_half_life: float | None = Field(
        None, gt=0, description="Days after which the weight of an interaction in the recent popularity halves."
    )
    prior_exponent: float | None = Field(None, ge=0, description="Exponent c of the recent popularity; 0: no prior.")
    user_exponent: float = Field(0.5, ge=0, le=2, description="Exponent y of the degree of users in between.")
    neighbours: int | None = Field(
        None, ge=1, description="Items kept per item, in both graphs; null: all. Bounds the memory of large catalogues."
    )


class TemporalHeat(PropagationModel):
    """Heat in time: the history spreads to items that share users or follow, weighted by age and recent popularity.

    It holds two sparse item graphs and the recent popularity of items.
    """

    name = "theat"
    item_rows = (*PropagationModel.item_rows, "degrees", "recent.value")
    item_matrices = ("shared_users", "following")
    Config = TemporalHeatConfig
    config: TemporalHeatConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    reads_times = True
    reads_content = True
    holds_users = False
    degrees: Tensor
    timed: Tensor

    def __init__(self, config: TemporalHeatConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.register_buffer("timed", torch.tensor(True))  # whether interactions have times
        self.shared_users = SparseMatrix(num_items, num_items)  # R' D_u^-y R
        self.following = SparseMatrix(num_items, num_items)  # N
        self.register_buffer("degrees", torch.zeros(num_items))  # users of each item
        self.recent = SizedByData(
            rows=num_items, trained=False, dtype=torch.float64
        )  # (I,) popularity at the half-life in use
        self._recent: dict[float, NDArray[np.float64]] = {}
        self.content_graph: ContentGraph | None = None

    def check(self, data: TrainingData) -> None:
        if not data.has_timestamps:
            warnings.warn(
                "theat finds no times in this data: in place of recent popularity it uses that of all interactions. "
                "Name the time column to change that.",
                RediffuseWarning,
                stacklevel=2,
            )

    def stages(self) -> list[dict[str, tuple[Any, ...]]]:
        graph = getattr(self, "content_graph", None)  # the base class asks before it is there
        # Never 0: where validation has few new items, they would be reached by nothing.
        of_content = [] if graph is None else [{"content_weight": (0.03, 0.003, 0.1, 0.3, 1.0)}]
        return [
            *of_content,
            {"half_life": (5.0, 2.0, 10.0, 100.0), "transition_weight": (0.3, 0.0, 1.0, 3.0)},
            {"prior_half_life": (30.0, 10.0, 100.0, 1000.0), "prior_exponent": (0.5, 0.0, 0.25, 0.75, 1.0)},
            {"item_exponent": (0.6, 0.4, 0.5, 0.7)},
        ]

    def open_stages(self) -> list[dict[str, tuple[Any, ...]]]:
        # Without times, all half-lives are the same.
        return [
            stage if self.timed or "prior_half_life" not in stage else stage | {"prior_half_life": (30.0,)}
            for stage in super().open_stages()
        ]

    # --- fitting -------------------------------------------------------------------------------------------

    def item_graphs(self, train: Histories) -> dict[str, ItemGraph]:
        matrix = binary_matrix(train, self.num_items)
        truncation = {
            "neighbours": self.config.neighbours,
            "column_weights": power(self.popularity.cpu().numpy(), -0.5),
        }
        of_users = power(np.diff(matrix.indptr), -self.config.user_exponent)
        shared = cooccurrence(matrix, of_users, **truncation)
        del matrix  # memory for the other graph
        following = transitions(train.items, train.offsets, self.num_items, window=WINDOW, decay=DECAY, **truncation)
        return {"shared_users": shared, "following": following}

    def derive(self, data: TrainingData) -> None:
        self.timed.fill_(data.has_timestamps)
        self.degrees.copy_(torch.from_numpy(users_of_items(data.train, self.num_items).astype(np.float32)))
        if data.content is not None and self.config.item_features:
            scale = self._item_scale(0.5)
            mass = float(scaled(self.shared_users.csr, scale, scale).sum(dtype=np.float64))
            learned = self.degrees.cpu().numpy() > 0
            self.content_graph = ContentGraph.of(data.content, learned, mass).to(self.degrees.device)
            self.resolve({"settings": self.settings, "dropped": self.dropped})
        choices = {self.settings["prior_half_life"]}
        for stage in self.open_stages():
            choices |= set(stage.get("prior_half_life", ()))
        if self.timed:
            self._recent = {days: recent_popularity(data.train, self.num_items, days) for days in choices}
        else:
            self._recent = dict.fromkeys(choices, self.popularity.cpu().numpy().astype(np.float64))

    def add_item_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        super().add_item_rows(state, prefix, added)
        if self.content_graph is not None:
            self.content_graph.add_rows(state, f"{prefix}content_graph.", added)

    @property
    def scores_new_items(self) -> bool:
        return self.content_graph is not None and self.settings["content_weight"] > 0

    def describe_added(self, content: Content, at: int) -> None:
        if self.content_graph is not None:
            self.content_graph.describe_added(content, at)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        # Before the loading of the submodules, of which the graph is one.
        parts = [state_dict.get(f"{prefix}content_graph.{name}") for name in ("column_weights", "dense")]
        if self.content_graph is None and parts[0] is not None and parts[1] is not None and parts[1].dim() == 2:
            self.content_graph = ContentGraph(self.num_items, (len(parts[0]), parts[1].shape[1]))
            self.resolve({})
        super()._load_from_state_dict(state_dict, prefix, *others)

    # --- scoring -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self.recent.set(torch.from_numpy(self.recent_popularity(self.settings)))
        super().prepare()

    def recent_popularity(self, settings: Settings) -> NDArray[np.float64]:
        """(num_items,) g before it is divided by its maximum."""
        found = self._recent.get(settings["prior_half_life"])
        return self.recent.value.cpu().numpy() if found is None else found

    def stranger_scores(self, settings: Settings) -> Tensor:
        return torch.from_numpy(self.recent_popularity(settings).astype(np.float32))

    @property
    def fallback_name(self) -> str:
        return "recent popularity" if self.timed else "popularity"

    def filled_popularity(self, settings: Settings) -> NDArray[np.float64]:
        """As `recent_popularity`; items without an interaction have the mean of those that are like them."""
        recent = self.recent_popularity(settings)
        return recent if self.content_graph is None else self.content_graph.filled(recent)

    def inputs(self, histories: Histories, settings: Settings) -> Inputs:
        since = events_since(histories)
        weights = np.exp2(-since / settings["half_life"])
        return {
            "history": weight_rows(histories, self.num_items, weights),
            "last": weight_rows(histories.tail(1), self.num_items, np.ones(int((since == 0).sum()))),
        }

    def terms(self, inputs: Inputs, settings: Settings) -> Iterator[tuple[str, Any]]:
        out = self._item_scale(settings["item_exponent"])
        yield "shared users", scale_columns(self.shared_mass(inputs["history"]), out)
        if weight := settings["transition_weight"]:
            yield "transitions", scale_columns(self.follower_mass(inputs["last"]), self._item_scale(0.5) * weight)

        if self.content_graph is not None and (weight := settings["content_weight"]):
            yield "content", self.content_graph.spread(inputs["history"]) * np.float32(weight)

    def map_matrix(self) -> sparse.csr_array:
        scale = self._item_scale(0.5)
        return scaled(self.shared_users.csr, scale, scale)

    def shared_mass(self, rows: sparse.csr_array) -> sparse.csr_array:
        """Rows through the graph of shared users, without the scale of recommended items."""
        return sparse.csr_array(scale_columns(rows, self._item_scale(0.5)) @ self.shared_users.csr)

    def follower_mass(self, rows: sparse.csr_array) -> sparse.csr_array:
        """Rows through the transitions, without the scale of recommended items."""
        return sparse.csr_array(scale_columns(rows, self._item_scale(0.5)) @ self.following.csr)

    def _item_scale(self, exponent: float) -> NDArray[np.float32]:
        return power(self.degrees.cpu().numpy(), -exponent).astype(np.float32)

    def prior(self, settings: Settings) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        recent = self.filled_popularity(settings)
        share = recent / max(float(recent.max(initial=0)), 1e-300)
        factor = (share ** settings["prior_exponent"] + FLOOR).astype(np.float32)
        return factor, (POPULARITY * self.popularity.cpu().numpy()).astype(np.float32)

    def all_scores(self, histories: Histories, tried: list[Settings]) -> Iterator[NDArray[np.float32]]:
        """The scores of every setting; the two sparse products are made once per half-life."""
        shared: dict[float, NDArray[np.float32]] = {}
        alike: dict[float, NDArray[np.float32]] = {}
        followers: NDArray[np.float32] | None = None
        for settings in tried:
            half_life, weight = settings["half_life"], settings["transition_weight"]
            if half_life not in shared:
                shared[half_life] = self.shared_mass(self.inputs(histories, settings)["history"]).toarray()
            scores = shared[half_life] * self._item_scale(settings["item_exponent"])
            if weight:
                if followers is None:
                    rows = self.inputs(histories, settings)["last"]
                    followers = scale_columns(self.follower_mass(rows), self._item_scale(0.5)).toarray()
                scores += weight * followers
            if self.content_graph is not None and (weight := settings["content_weight"]):
                if half_life not in alike:
                    alike = {
                        half_life: self.content_graph.spread(self.inputs(histories, settings)["history"]).toarray()
                    }
                scores += np.float32(weight) * alike[half_life]
            factor, added = self.prior(settings)
            scores *= factor
            scores += added
            yield self.weigh_seen(scores, histories, settings)
