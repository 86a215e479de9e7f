"""DiffNet++: people and items spread to each other, over friends and over what was touched, with attention.

Wu et al., TKDE 2020 (arXiv 2002.00844). In layer k a person a and an item i become

    s_a = sum over friends b of  alpha_ab u_b        n_a = sum over touched items i of  beta_ai v_i
    u_a' = u_a + gamma_as s_a + gamma_an n_a         v_i' = v_i + sum over its people a of  eta_ia u_a

where alpha, beta and eta are softmaxes over the edges of a node, and gamma over what the person has: friends, items, or
both. All weights come from the vectors at both ends, through a layer of their own each. A score is the inner product of
the vectors of all layers together, u^0 to u^hops and v^0 to v^hops.

The released code has another form (``fidelity=released``, preset ``released``): each edge has a trained number instead
(``attention=link``), a person's gates are lifted by fixed amounts and average with the old vector, an item has gates
as well, and u^0 stands apart from what features add to it in the last product.
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
from rediffuse.models.social import SocialConfig, SocialModel
from rediffuse.nn import SizedByData

# Width of the layer between two vectors and their weight.
HIDDEN = 16
# What the released code adds to the exponentials of its gates.
INTEREST_OFFSET, SOCIAL_OFFSET, ITEM_OFFSET = 0.7, 0.3, 1.0


class DiffNetPPConfig(SocialConfig):
    """Defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "released": {
            "fidelity": "released",
            "embedding_size": 64,
            "learning_rate": 5e-4,
            "epochs": 450,
            "reg": 0.0,
            "negatives": 8,
            "loss": "squared",
            "hops": 2,
            "attention": "link",
            "fusion": "add",
            "feature_scale": 0.1,
            "init": 0.01,
        },
    }
    search: ClassVar[dict[str, Any]] = SocialConfig.search | {"attention": ("vectors", "link", "mean")}

    learning_rate: float = Field(5e-3, gt=0)
    hops: int = Field(1, ge=0, description="Steps along the graphs; 0: friends play no part.")
    fidelity: Literal["corrected", "released"] = Field(
        "corrected", description="released: the gates and the last product of the authors' program."
    )
    attention: Literal["vectors", "link", "mean"] = Field(
        "vectors", description="What weighs an edge: the vectors at its ends, a number of its own, or nothing."
    )


class VectorAttention(nn.Module):
    """Weights from the vectors at both ends of an edge, e = w leaky(W [x_row || x_column] + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.row, self.column = nn.Linear(size, HIDDEN), nn.Linear(size, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, 1, bias=False)

    def forward(self, part: RowBlock, rows: Tensor, columns: Tensor) -> Tensor:
        """(e,) weights of the edges of ``part``; arguments (n, d) and (columns, d)."""
        hidden = part.both_ends(self.row(rows), self.column(columns))
        return part.softmax(self.out(F.leaky_relu(hidden, 0.2)).squeeze(1))


class LinkAttention(nn.Module):
    """Weights from a number theta of each edge, exp(sigmoid(w theta + b)): within a row at most e^(e - 1) apart."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = SizedByData()
        self.graph: Graph | None = None
        self.scale = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1)).squeeze())
        self.shift = nn.Parameter(torch.zeros(()))

    def begin(self, graph: Graph) -> None:
        """Fresh numbers for the edges of ``graph``."""
        self.graph = graph
        self.theta.set(torch.randn(len(graph)))

    def forward(self, part: RowBlock, rows: Tensor, columns: Tensor) -> Tensor:
        """As `VectorAttention`; the edges of any other graph weigh alike."""
        if part.graph is not self.graph:
            return part.values
        return part.softmax(torch.exp(torch.sigmoid(self.scale * part.of_graph(self.theta.value) + self.shift)))


class Mean(nn.Module):
    """All edges of a node weigh alike."""

    def forward(self, part: RowBlock, rows: Tensor, columns: Tensor) -> Tensor:
        return part.values


class Gate(nn.Module):
    """(n,) one number from vectors (n, size): leaky(w tanh(W x + b) + c)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(size, hidden), nn.Linear(hidden, 1)
        for layer in (self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.second(torch.tanh(self.first(x))), 0.2).squeeze(1)


class Layer(nn.Module):
    """One step of spreading, from the vectors of all people and items to new ones of some."""

    def __init__(self, config: DiffNetPPConfig) -> None:
        super().__init__()
        size, self.released = config.embedding_size, config.fidelity == "released"
        kinds = {"vectors": lambda: VectorAttention(size), "link": LinkAttention, "mean": Mean}
        self.of_friends, self.of_items, self.of_fans = (kinds[config.attention]() for _ in range(3))
        hidden = 1 if self.released else HIDDEN
        self.social, self.interest = Gate(2 * size, hidden), Gate(2 * size, hidden)
        if self.released:
            self.own, self.item_users = Gate(size, 1), Gate(size, 1)

    def resolve_users(self, mine: Tensor, users: Tensor, items: Tensor, friends: RowBlock, interest: RowBlock) -> Tensor:
        """(n, d) new vectors of the people in both parts, whose old ones are ``mine`` (n, d).

        Args:
            users, items: (users, d) and (items, d), all old vectors.
        """
        social = friends.gather(users, self.of_friends(friends, mine, users))
        liked = interest.gather(items, self.of_items(interest, mine, items))
        gates = self.gates(mine, social, liked, friends, interest)
        pooled = gates[:, :1] * social + gates[:, 1:] * liked
        return (mine + pooled) / 2 if self.released else mine + pooled

    def gates(self, mine: Tensor, social: Tensor, liked: Tensor, friends: RowBlock, interest: RowBlock) -> Tensor:
        """(n, 2) how much friends and items weigh, summing to one; unless released, over what the person has."""
        logits = torch.stack((self.social(torch.cat((mine, social), 1)), self.interest(torch.cat((mine, liked), 1))), 1)
        if not self.released:
            nothing = torch.stack((friends.offsets.diff() == 0, interest.offsets.diff() == 0), 1)
            # Not -inf, which makes a row of two into NaN; of such a row both pools are zero.
            return logits.masked_fill(nothing, -1e9).softmax(1)
        lifted = logits.exp() + logits.new_tensor([SOCIAL_OFFSET, INTEREST_OFFSET])
        return lifted / lifted.sum(1, keepdim=True)

    def items(self, mine: Tensor, users: Tensor, item_users: RowBlock) -> Tensor:
        """(n, d) new vectors of the items in ``item_users``, whose old ones are ``mine`` (n, d)."""
        pooled = item_users.gather(users, self.of_fans(item_users, mine, users))
        if not self.released:
            return mine + pooled
        own, theirs = self.own(mine).exp() + ITEM_OFFSET, self.item_users(pooled).exp() + ITEM_OFFSET
        share = (own / (own + theirs))[:, None]
        return share * mine + (1 - share) * pooled


class DiffNetPP(SocialModel):
    """In a batch the last layer is computed for its people and items alone."""

    name = "diffnetpp"
    Config = DiffNetPPConfig
    config: DiffNetPPConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    item_users: Graph  # items x users, made by `fit`

    def __init__(self, config: DiffNetPPConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.hops))
        self.item_layers = SizedByData(trained=False)  # v^0 to v^hops, side by side

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        touched_by = binary_matrix(data.train, self.num_items).T.tocsr()
        self.item_users = Graph(row_normalised(sparse.csr_array(touched_by)), self.popularity.device)
        if self.config.attention == "link":
            for layer in self.layers:
                for attention, graph in (
                    (layer.of_friends, self.friends),
                    (layer.of_items, self.interest),
                    (layer.of_fans, self.item_users),
                ):
                    attention.begin(graph)  # pyright: ignore

    def layers_of(self, rows: Tensor | None = None, items: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """u^0 to u^hops and v^0 to v^hops, (users, d) and (items, d); the last ones of ``rows`` and ``items`` alone,
        which are distinct."""
        users_of, items_of = [self.fused("user")], [self.fused("item")]
        for number, layer in enumerate(self.layers):
            last = number == len(self.layers) - 1
            some_users, some_items = (rows, items) if last else (None, None)
            users, things = users_of[-1], items_of[-1]
            friends, interest = self.friends.block(some_users), self.interest.block(some_users)
            users_of.append(layer.resolve_users(_some(users, some_users), users, things, friends, interest))  # pyright: ignore
            items_of.append(layer.items(_some(things, some_items), users, self.item_users.block(some_items)))  # pyright: ignore
        return users_of, items_of

    def spread(self, rows: Tensor | None = None, items: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, width) and (m, width): the vectors of all people and items, or of some (distinct)."""
        return self.both_joined(self.layers_of(rows, items), (rows, items))

    def both_joined(
        self, layers: tuple[list[Tensor], list[Tensor]], chosen: tuple[Tensor | None, Tensor | None] = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """`joined` of people and of items."""
        sides = zip(("user", "item"), layers, chosen, strict=True)
        users, things = (self.joined(states, *self.apart(who), some) for who, states, some in sides)  # pyright: ignore
        return users, things

    def apart(self, who: Literal["user", "item"]) -> tuple[Tensor, Tensor | None]:
        """`starts`; zeros where the other side alone has features."""
        free, told = self.starts(who)
        return free, torch.zeros_like(free) if told is None and self.feature_vectors else told

    def joined(self, layers: list[Tensor], free: Tensor, told: Tensor | None, rows: Tensor | None = None) -> Tensor:
        """One vector out of all layers, of which the last is of ``rows`` already. In the released form u^0 is left out,
        and the embeddings and what features become stand in its place."""
        first, last = layers[:-1], layers[-1:]
        if not first:  # no hops
            first, last = last, []
        if self.config.fidelity == "released":
            first = [*first[1:], free] if told is None else [*first[1:], free, told]
        return torch.cat([*(_some(layer, rows) for layer in first), *last], dim=1)

    def vectors(self) -> tuple[Tensor, Tensor]:
        return self.spread()

    def batch_vectors(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        rows, place = batch.users.unique(return_inverse=True)
        asked = torch.cat((batch.positives[:, None], batch.negatives), dim=1)
        items, places = asked.unique(return_inverse=True)
        mine, things = self.spread(rows, items)
        things = F.embedding(places, things)
        return F.embedding(place, mine), things[:, 0], things[:, 1:]

    @torch.no_grad()
    def prepare(self) -> None:
        layers = self.layers_of()
        self.keep(*self.both_joined(layers))
        self.item_layers.set(torch.cat(layers[1], dim=1))

    @torch.no_grad()
    def fold_in(self, histories: Histories) -> Tensor:
        """The same layers for someone without friends, whose u^0 is that of people on average."""
        size, device = self.config.embedding_size, self.popularity.device
        interest = Graph(row_normalised(binary_matrix(histories, self.num_items)), device).block()
        friends = Graph(sparse.csr_array((len(histories), 1), dtype=np.float32), device).block()
        mean, free, told = (x.expand(len(histories), size) for x in self.cold_user_mean)
        states, nobody = [mean], torch.zeros(1, size, device=device)
        for layer, things in zip(self.layers, self.item_layers.value.split(size, dim=1), strict=False):
            states.append(layer.resolve_users(states[-1], nobody, things, friends, interest))  # pyright: ignore
        width = self.item_vectors.value.shape[1] // size
        return self.joined(states, free, told if width > self.config.hops + 1 else None)


def _some(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else F.embedding(rows, x)
