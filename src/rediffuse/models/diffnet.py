"""DiffNet: a person's vector spreads to their friends, and to their friends' friends.

Wu et al., SIGIR 2019 (arXiv 1904.10322). With S the mean over friends and R the mean over touched items,

    h^k = S h^(k-1),   k = 1 .. hops,        u = h^0 + h^1 + ... + h^hops + R q,        score = u . q

where h^0 and q are the free embeddings of people and items, fused with their feature vectors where there are any. The
released code leaves h^0 out of the sum (``combine=hops``); in the paper's text u = h^hops + R q (``combine=last``). The
paper's layers have weights and a nonlinearity, the released code has neither, and its authors found it no worse.
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
    """Defaults are chosen on validation data; see docs/benchmarks.md."""

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
        "all", description="Which h^k are summed: 0 to hops, 1 to hops, hops."
    )


class DiffNet(SocialModel):
    """In a batch the last hop and the mean over items are taken for its people alone."""

    name = "diffnet"
    Config = DiffNetConfig
    config: DiffNetConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def resolve_users(self, h_0: Tensor, q: Tensor, rows: Tensor | None = None) -> Tensor:
        """(n, d) the vectors u of all people, or of those in ``rows`` (n,), distinct.

        Args:
            h_0, q: (users, d) and (items, d).
        """
        friends, interest = self.friends.block(rows), self.interest.block(rows)
        own = h_0 if rows is None else F.embedding(rows, h_0)
        liked = interest @ q
        if not self.config.hops:
            return own + liked
        states = propagate(self.friends, h_0, self.config.hops - 1)
        if self.config.combine == "last":
            return friends @ states[-1] + liked
        # S is linear: h^1 + ... + h^hops = S (h^0 + ... + h^(hops - 1))
        spread = friends @ torch.stack(states).sum(0)
        return (own + spread if self.config.combine == "all" else spread) + liked

    def steps_that_count(self) -> Sequence[int]:
        hops = self.config.hops
        return {"all": range(hops + 1), "hops": range(min(1, hops), hops + 1), "last": [hops]}[self.config.combine]

    def vectors(self) -> tuple[Tensor, Tensor]:
        h_0, q = self.fused("user"), self.fused("item")
        return self.resolve_users(h_0, q), q

    def batch_vectors(self, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor]:
        rows, place = batch.users.unique(return_inverse=True)
        h_0, q = self.fused("user"), self.fused("item")
        mine = F.embedding(place, self.resolve_users(h_0, q, rows))
        return mine, F.embedding(batch.positives, q), F.embedding(batch.negatives, q)

    def fold_in(self, histories: Histories) -> Tensor:
        """What the formula gives someone without friends, whose h^0 is that of people on average."""
        table = self.item_vectors.value
        items, offsets, _ = bags(histories, self.num_items, table.device)
        liked = F.embedding_bag(items, table, offsets, mode="mean")
        counts = self.config.combine == "all" or not self.config.hops
        return liked + self.cold_user_mean[0] if counts else liked
