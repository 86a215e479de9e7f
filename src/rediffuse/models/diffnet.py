"""DiffNet: the vector of a user spreads to their friends, and to their friends' friends.

Wu et al., SIGIR 2019 (arXiv 1904.10322). With S the mean over friends and R the mean over a user's items,

    h^k = S h^(k-1),   k = 1 .. hops,        u = h^0 + h^1 + ... + h^hops + R q,        score = u . q

where h^0 and q are the embeddings of users and items, combined with their feature vectors if there are any. The
released code leaves h^0 out of the sum (``combine=hops``); in the paper's text u = h^hops + R q (``combine=last``). The
paper's layers have weights and a nonlinearity. The released code has neither; its authors found it no worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from rediffuse.batching.matrix import bags
from rediffuse.batching.pairs import PairBatch
from rediffuse.data.histories import Histories
from rediffuse.graphs import propagate
from rediffuse.models.social import SocialConfig, SocialModel


class DiffNetConfig(SocialConfig):
    """Options of DiffNet. The defaults are chosen on validation data; see docs/benchmarks.md."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "released": {
            "embedding_size": 32,
            "learning_rate": 1e-3,
            "epochs": 300,
            "reg": 0.0,
            "negatives": 8,
            "loss": "squared",
            "combine": "hops",
            "fusion": "add",
            "init": 0.01,
        },
    }
    search: ClassVar[dict[str, Any]] = SocialConfig.search | {"combine": ("all", "hops", "last")}

    combine: Literal["all", "hops", "last"] = Field(
        "all", description="Which h^k are summed: all, those from 1 (hops), or the last."
    )


class DiffNet(SocialModel):
    """Vectors of users spread over the social graph, and are compared with item vectors.

    A training batch computes the last hop and the mean over items for its own users only.
    """

    name = "diffnet"
    Config = DiffNetConfig
    config: DiffNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

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
        states = propagate(self.friends, h_0, self.config.hops - 1)
        if self.config.combine == "last":
            return friends @ states[-1] + item_mean
        # S is linear: h^1 + ... + h^hops = S (h^0 + ... + h^(hops - 1))
        influence = friends @ torch.stack(states).sum(0)
        return (own + influence if self.config.combine == "all" else influence) + item_mean

    def summed_hops(self) -> Sequence[int]:
        hops = self.config.hops
        return {"all": range(hops + 1), "hops": range(min(1, hops), hops + 1), "last": [hops]}[self.config.combine]

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
        has_own = self.config.combine == "all" or not self.config.hops
        return item_mean + self.cold_user_mean[0] if has_own else item_mean
