"""DiffNet++: vectors of users and items spread to each other, over friends and interactions, with attention.

Wu et al., TKDE 2020 (arXiv 2002.00844). In layer k a user a and an item i become

    s_a = sum over friends b of  alpha_ab u_b        n_a = sum over a's items i of  beta_ai v_i
    u_a' = u_a + gamma_as s_a + gamma_an n_a         v_i' = v_i + sum over i's users a of  eta_ia u_a

where alpha, beta and eta are softmaxes over the edges of a node, and gamma is a softmax over what the user has:
friends, items, or both. Each of them has a layer of its own, which reads the vectors at both ends. A score is the inner
product of the vectors of all layers side by side, u^0 to u^hops and v^0 to v^hops.

In the released code (``fidelity=released``), a user's gates are raised by fixed amounts and the new vector is averaged
with the old one, items have gates too, and u^0 is replaced in the last product by the embedding and the projected
features. Its attention is a trained number per edge (``attention=link``).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import binary_matrix
from rediffuse.batching.pairs import PairBatch
from rediffuse.data.histories import Histories
from rediffuse.graphs import Graph, RowBlock, row_normalised
from rediffuse.models.base import TrainingData
from rediffuse.models.social import Side, SocialConfig, SocialModel
from rediffuse.nn import SizedByData

# Width of the layer between two vectors and their weight.
HIDDEN = 16
# What the released code adds to the exponentials of its gates.
INTEREST_OFFSET, SOCIAL_OFFSET, ITEM_OFFSET = 0.7, 0.3, 1.0


# Options of the released program.
_PAPER: dict[str, Any] = {
    "embedding_size": 64,
    "learning_rate": 5e-4,
    "epochs": 450,
    "reg": 0.0,
    "negatives": 8,
    "loss": "squared",
    "hops": 2,
    "attention": "link",
    "fusion": "add",
    "shared_projection": True,
    "feature_scale": 0.1,
    "init": 0.01,
}


class DiffNetPPConfig(SocialConfig):
    """Options of DiffNet++. The defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _PAPER,
        "released": _PAPER | {"fidelity": "released"},
    }
    search: ClassVar[dict[str, Any]] = SocialConfig.search | {"attention": ("vectors", "link", "mean")}

    learning_rate: float = Field(5e-3, gt=0)
    hops: int = Field(1, ge=0, description="Steps along the graphs; 0: friends have no effect.")
    fidelity: Literal["corrected", "released"] = Field(
        "corrected", description="released: the gates and the last product of the authors' program."
    )
    attention: Literal["vectors", "link", "mean"] = Field(
        "vectors", description="What weighs an edge: the vectors at its ends, a trained number (link), or nothing."
    )


class VectorAttention(nn.Module):
    """Weights from the vectors at both ends of an edge, e = w leaky(W [x_row || x_column] + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row, self.column = nn.Linear(size, HIDDEN), nn.Linear(size, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, block: RowBlock, rows: Tensor, columns: Tensor) -> Tensor:
        """(e,) weights of the edges of ``block``; arguments (n, d) and (columns, d)."""
        hidden = block.both_ends(self.row(rows), self.column(columns))
        return block.softmax(self.out(F.leaky_relu(hidden, 0.2)).squeeze(1))


class LinkAttention(nn.Module):
    """Weights from a trained number theta per edge: the softmax of exp(sigmoid(w theta + b)).

    Two weights of a row differ at most by a factor of e^(e - 1).
    """

    def __init__(self) -> None:
        super().__init__()
        self.theta = SizedByData()
        self.graph: Graph | None = None
        self.scale = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1)).squeeze())
        self.shift = nn.Parameter(torch.zeros(()))

    def begin(self, graph: Graph) -> None:
        """Draw new numbers for the edges of ``graph``."""
        self.graph = graph
        self.theta.set(torch.randn(len(graph)))

    def forward(self, block: RowBlock, rows: Tensor, columns: Tensor) -> Tensor:
        """As `VectorAttention`; the edges of another graph have equal weights."""
        if block.graph is not self.graph:
            return block.values
        return block.softmax(torch.exp(torch.sigmoid(self.scale * block.of_graph(self.theta.value) + self.shift)))


class MeanAttention(nn.Module):
    """Equal weights for all edges of a node."""

    def forward(self, block: RowBlock, rows: Tensor, columns: Tensor) -> Tensor:
        return block.values


class Gate(nn.Module):
    """One number (n,) from vectors (n, size): leaky(w tanh(W x + b) + c)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, hidden), nn.Linear(hidden, 1)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.second(torch.tanh(self.first(x))), 0.2).squeeze(1)


class Layer(nn.Module):
    """One step along the graphs: the vectors of all users and items give new vectors of some of them."""

    def __init__(self, config: DiffNetPPConfig) -> None:
        super().__init__()
        size, self.released = config.embedding_size, config.fidelity == "released"
        kinds = {"vectors": lambda: VectorAttention(size), "link": LinkAttention, "mean": MeanAttention}
        self.friend_attention, self.interest_attention, self.item_attention = (
            kinds[config.attention]() for _ in range(3)
        )
        hidden = 1 if self.released else HIDDEN
        self.social_gate, self.interest_gate = Gate(2 * size, hidden), Gate(2 * size, hidden)
        if self.released:
            self.item_gate, self.item_users_gate = Gate(size, 1), Gate(size, 1)

    def update_users(self, old: Tensor, users: Tensor, items: Tensor, friends: RowBlock, interest: RowBlock) -> Tensor:
        """(n, d) the new vectors of the n users that ``friends`` and ``interest`` are rows of.

        Args:
            old: (n, d) their old vectors.
            users, items: (users, d) and (items, d), the old vectors of all.
        """
        social = friends.gather(users, self.friend_attention(friends, old, users))
        liked = interest.gather(items, self.interest_attention(interest, old, items))
        gates = self.user_gates(old, social, liked, friends, interest)
        received = gates[:, :1] * social + gates[:, 1:] * liked
        return (old + received) / 2 if self.released else old + received

    def user_gates(self, old: Tensor, social: Tensor, liked: Tensor, friends: RowBlock, interest: RowBlock) -> Tensor:
        """(n, 2) the weights of friends and of items, whose sum is one; unless released, over what the user has."""
        to_social = self.social_gate(torch.cat((old, social), 1))
        to_liked = self.interest_gate(torch.cat((old, liked), 1))
        logits = torch.stack((to_social, to_liked), 1)
        if not self.released:
            absent = torch.stack((friends.offsets.diff() == 0, interest.offsets.diff() == 0), 1)
            # Not -inf: a user with neither would get NaN. Both of their sums are zero, so the weights do not matter.
            return logits.masked_fill(absent, -1e9).softmax(1)
        raised = logits.exp() + logits.new_tensor([SOCIAL_OFFSET, INTEREST_OFFSET])
        return raised / raised.sum(1, keepdim=True)

    def update_items(self, old: Tensor, users: Tensor, item_users: RowBlock) -> Tensor:
        """(n, d) the new vectors of the n items that ``item_users`` is rows of.

        Args:
            old: (n, d) their old vectors.
            users: (users, d) the old vectors of all users.
        """
        received = item_users.gather(users, self.item_attention(item_users, old, users))
        if not self.released:
            return old + received
        to_old = self.item_gate(old).exp() + ITEM_OFFSET
        to_received = self.item_users_gate(received).exp() + ITEM_OFFSET
        share = (to_old / (to_old + to_received))[:, None]
        return share * old + (1 - share) * received


class DiffNetPP(SocialModel):
    """Vectors of users and items spread over friends and interactions, weighted by attention.

    A training batch computes the last layer for its own users and items only.
    """

    name = "diffnetpp"
    Config = DiffNetPPConfig
    config: DiffNetPPConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    item_users: Graph  # items x users, made by `fit`

    def __init__(self, config: DiffNetPPConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.hops))
        self.item_layers = SizedByData(rows=num_items, trained=False)  # v^0 to v^hops, side by side

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        item_users = binary_matrix(data.train, self.num_items).T.tocsr()
        self.item_users = Graph(row_normalised(sparse.csr_array(item_users)), self.popularity.device)
        if self.config.attention == "link":
            for layer in self.layers:
                for attention, graph in (
                    (layer.friend_attention, self.friends),
                    (layer.interest_attention, self.interest),
                    (layer.item_attention, self.item_users),
                ):
                    attention.begin(graph)  # pyright: ignore

    def layer_outputs(
        self, rows: Tensor | None = None, items: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """u^0 to u^hops, each (users, d), and v^0 to v^hops, each (items, d).

        The last of each is for the users ``rows`` and the items ``items`` only, if given; both are distinct.
        """
        user_states, item_states = [self.fused("user")], [self.fused("item")]
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            of_users, of_items = (rows, items) if last else (None, None)
            users, all_items = user_states[-1], item_states[-1]
            friends, interest = self.friends.block(of_users), self.interest.block(of_users)
            old = _select(users, of_users)
            user_states.append(layer.update_users(old, users, all_items, friends, interest))  # pyright: ignore
            old = _select(all_items, of_items)
            item_states.append(layer.update_items(old, users, self.item_users.block(of_items)))  # pyright: ignore
        return user_states, item_states

    def joined(self, side: Side, states: list[Tensor], rows: Tensor | None = None) -> Tensor:
        """(n, width) the product's vectors of users or items, of all or of ``rows``, from `layer_outputs`."""
        embedding, projected = self.embedding_and_features(side)
        if projected is None and self.feature_vectors:  # only the other side has features; widths must agree
            projected = torch.zeros_like(embedding)
        return self._side_by_side(states, embedding, projected, rows)

    def _side_by_side(
        self, states: list[Tensor], embedding: Tensor, projected: Tensor | None, rows: Tensor | None = None
    ) -> Tensor:
        """Join the layers, of which the last is already for ``rows`` only; if released, without u^0."""
        earlier, last = states[:-1], states[-1:]
        if not earlier:  # no hops
            earlier, last = last, []
        if self.config.fidelity == "released":
            earlier = [*earlier[1:], embedding] if projected is None else [*earlier[1:], embedding, projected]
        return torch.cat([*(_select(state, rows) for state in earlier), *last], dim=1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        user_states, item_states = self.layer_outputs()
        return self.joined("user", user_states), self.joined("item", item_states)

    def batch_vectors(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        rows, user_places = batch.users.unique(return_inverse=True)
        items, item_places = torch.cat((batch.positives[:, None], batch.negatives), dim=1).unique(return_inverse=True)
        user_states, item_states = self.layer_outputs(rows, items)
        users = F.embedding(user_places, self.joined("user", user_states, rows))
        scored = F.embedding(item_places, self.joined("item", item_states, items))
        return users, scored[:, 0], scored[:, 1:]

    @torch.no_grad()
    def prepare(self) -> None:
        user_states, item_states = self.layer_outputs()
        self.store_vectors(self.joined("user", user_states), self.joined("item", item_states))
        self.item_layers.set(torch.cat(item_states, dim=1))

    @torch.no_grad()
    def fold_in(self, histories: Histories) -> Tensor:
        """The same layers for a user without friends, whose u^0 is the mean of u^0 over trained users."""
        size, device = self.config.embedding_size, self.popularity.device
        interest = Graph(row_normalised(binary_matrix(histories, self.num_items)), device).block()
        friends = Graph(sparse.csr_array((len(histories), 1), dtype=np.float32), device).block()
        mean, embedding, projected = (x.expand(len(histories), size) for x in self.cold_user_mean)
        states, no_friend = [mean], torch.zeros(1, size, device=device)
        for layer, items in zip(self.layers, self.item_layers.value.split(size, dim=1), strict=False):
            states.append(layer.update_users(states[-1], no_friend, items, friends, interest))  # pyright: ignore
        width = self.item_vectors.value.shape[1] // size
        return self._side_by_side(states, embedding, projected if width > self.config.hops + 1 else None)


def _select(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else F.embedding(rows, x)
