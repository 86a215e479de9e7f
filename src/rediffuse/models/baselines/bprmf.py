"""BPR-MF: matrix factorisation with Bayesian personalised ranking (Rendle et al., UAI 2009), with a bias per item."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import bags
from rediffuse.config import ContentConfig
from rediffuse.data.histories import Histories
from rediffuse.models.content import ContentModel
from rediffuse.models.factors import FactorConfig, FactorModel


class BPRMFConfig(FactorConfig, ContentConfig):
    """Options of BPR-MF."""


class BPRMF(ContentModel, FactorModel):
    """Matrix factorisation: a vector per user, and a vector and a bias per item, learned from pairs of items.

    score(u, i) = p_u q_i + b_i.
    """

    name = "bprmf"
    Config = BPRMFConfig
    config: BPRMFConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    item_rows = (*FactorModel.item_rows, "item_bias")

    def __init__(self, config: BPRMFConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.item_bias = nn.Parameter(torch.zeros(num_items))

    def vectors(self) -> tuple[Tensor, Tensor]:
        # The bias is a further coordinate, which is one for all users.
        users = F.pad(self.user_embedding.weight, (0, 1), value=1.0)
        return users, torch.cat((self.item_embedding.all(), self.item_bias[:, None]), dim=1)

    @torch.no_grad()
    def place_items(self, items: Tensor, vectors: Tensor) -> None:
        self.item_embedding.weight[items], self.item_bias[items] = vectors[:, :-1], vectors[:, -1]

    def fold_in(self, histories: Histories) -> Tensor:
        """The direction of BPR's first gradient step from zero, scaled to the mean length of the users' vectors.

        That step leads from the mean of all items (the negatives) to the mean of the history.
        """
        table = self.item_embedding.all()
        items, offsets, _ = bags(histories, self.num_items, table.device)
        direction = F.embedding_bag(items, table, offsets, mode="mean") - table.mean(0)
        length = self.user_embedding.weight[self.trained].norm(dim=1).mean()
        return F.pad(F.normalize(direction, dim=1) * length, (0, 1), value=1.0)
