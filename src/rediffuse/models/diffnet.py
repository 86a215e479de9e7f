"""DiffNet: the vector of a user spreads to their friends, and to their friends' friends.

Wu et al., SIGIR 2019 (arXiv 1904.10322). With S the mean over friends and R the mean over a user's items,

    h^k = S h^(k-1),   k = 1 .. hops,        u = h^0 + h^1 + ... + h^hops + R q,        score = u . q

where h^0 and q are the embeddings of users and items, combined with their feature vectors if there are any. The
released code leaves h^0 out of the sum (``combine=hops``); in the paper's text u = h^hops + R q (``combine=last``). The
paper's layers have weights and a nonlinearity s,

    h^k = s(W^k [S h^(k-1) || h^(k-1)])                                                    (``layer=relu`` and others)

The released code has neither; its authors found it no worse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import bags
from rediffuse.batching.pairs import PairBatch
from rediffuse.data.histories import Histories
from rediffuse.graphs import propagate
from rediffuse.models.social import SocialConfig, SocialModel

NONLINEARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


_RELEASED: dict[str, Any] = {
    "embedding_size": 32,
    "learning_rate": 1e-3,
    "epochs": 300,
    "reg": 0.0,
    "negatives": 8,
    "loss": "squared",
    "combine": "hops",
    "fusion": "add",
    "shared_projection": True,
    "init": 0.01,
}


class DiffNetConfig(SocialConfig):
    """Options of DiffNet. The defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _RELEASED,  # the published figures are those of the program
        "released": _RELEASED,
        # The first 10 of 1,000 sampled items are the first 373 of the 37,378: the epoch that is best among the former
        # is not best at the top of the catalogue.
        "paper:yelp": _RELEASED | {"metric": "recall@373"},
    }
    search: ClassVar[dict[str, Any]] = SocialConfig.search | {"combine": ("all", "hops", "last")}

    combine: Literal["all", "hops", "last"] = Field(
        "all", description="Which h^k are summed: all, those from 1 (hops), or the last."
    )
    layer: Literal["mean", "relu", "sigmoid", "tanh"] = Field(
        "mean",
        description="A hop: the mean over friends, or the paper's layer of weights on that and on the user's own "
        "vector, with this nonlinearity.",
    )


class DiffNet(SocialModel):
    """Vectors of users spread over the social graph, and are compared with item vectors.

    A training batch computes the last hop and the mean over items for its own users only.
    """

    name = "diffnet"
    Config = DiffNetConfig
    config: DiffNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: DiffNetConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.layers = nn.ModuleList()
        if config.layer != "mean":
            size = config.embedding_size
            self.layers.extend(nn.Linear(2 * size, size, bias=False) for _ in range(config.hops))
            for layer in self.layers:
                nn.init.xavier_uniform_(layer.weight)  # pyright: ignore

    def hop(self, number: int, of_friends: Tensor, own: Tensor) -> Tensor:
        """(n, d) h^number, counted from 1, from the mean over friends (n, d) and the users' own vectors (n, d)."""
        if self.config.layer == "mean":
            return of_friends
        joined = torch.cat((of_friends, own), dim=1)
        return NONLINEARITIES[self.config.layer](self.layers[number - 1](joined))

    def weighted_states(self, h_0: Tensor, rows: Tensor | None) -> list[Tensor]:
        """h^0 to h^hops of the layers with weights, of all users or of ``rows``."""
        states = [h_0]
        for number in range(1, self.config.hops):
            states.append(self.hop(number, self.friends @ states[-1], states[-1]))
        own = [state if rows is None else F.embedding(rows, state) for state in states]
        return [*own, self.hop(self.config.hops, self.friends.block(rows) @ states[-1], own[-1])]

    def diffused_users(self, h_0: Tensor, q: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n, d) the vectors u of all users, or of ``rows`` (n,), which are distinct.

        Args:
            h_0, q: (users, d) and (items, d).
        """
        friends, interest = self.friends.block(rows), self.interest.block(rows)
        own = h_0 if rows is None else F.embedding(rows, h_0)
        item_mean = interest @ q
        if not self.config.hops:
            return own + item_mean
        if self.config.layer != "mean":
            states = self.weighted_states(h_0, rows)
            return torch.stack([states[hop] for hop in self.summed_hops()]).sum(0) + item_mean
        states = propagate(self.friends, h_0, self.config.hops - 1)
        if self.config.combine == "last":
            return friends @ states[-1] + item_mean
        # S is linear: h^1 + ... + h^hops = S (h^0 + ... + h^(hops - 1))
        influence = friends @ torch.stack(states).sum(0)
        return (own + influence if self.config.combine == "all" else influence) + item_mean

    def summed_hops(self) -> Sequence[int]:
        hops = self.config.hops
        return {"all": range(hops + 1), "hops": range(min(1, hops), hops + 1), "last": [hops]}[self.config.combine]

    def _steps_from(self, adjacency: sparse.csr_array, users: NDArray[np.bool_]) -> list[NDArray[np.float32]]:
        if self.config.layer == "mean":
            return super()._steps_from(adjacency, users)
        steps = [users.astype(np.float32)]  # a layer reads the mean over friends and the user's own vector
        for _ in range(self.config.hops):
            steps.append((adjacency @ steps[-1] + steps[-1]) / np.float32(2))
        return steps

    def vectors(self) -> tuple[Tensor, Tensor]:
        h_0, q = self.fused("user"), self.fused("item")
        return self.diffused_users(h_0, q), q

    def batch_vectors(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        rows, place = batch.users.unique(return_inverse=True)
        h_0, q = self.fused("user"), self.fused("item")
        users = F.embedding(place, self.diffused_users(h_0, q, rows))
        return users, F.embedding(batch.positives, q), F.embedding(batch.negatives, q)

    def fold_in(self, histories: Histories) -> Tensor:
        """The formula for a user without friends, whose h^0 is the mean of h^0 over trained users."""
        q = self.item_vectors.value
        items, offsets, _ = bags(histories, self.num_items, q.device)
        item_mean = F.embedding_bag(items, q, offsets, mode="mean")
        if self.config.layer != "mean" and self.config.hops:
            states = [self.cold_user_mean[:1]]
            for number in range(1, self.config.hops + 1):
                states.append(self.hop(number, torch.zeros_like(states[-1]), states[-1]))
            return item_mean + torch.stack([states[hop] for hop in self.summed_hops()]).sum(0)
        has_own = self.config.combine == "all" or not self.config.hops
        return item_mean + self.cold_user_mean[0] if has_own else item_mean
