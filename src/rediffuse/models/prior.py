"""A prior from the item graph beside a network.

With the scores z of a network, the recent popularity g and the scores s of `theat` (both divided by their largest
value, s within each user), a model with a prior answers

    log softmax(z) + a log(g + e) + b log(s + e)

a and b are chosen on validation data, and 0, the network alone, is among the choices. Networks whose scores are amounts
rather than logits take log(z / max z + e) in place of log softmax(z).

What the network learns is what its training loss rewards, so with ``prior="head"`` it learns the graph a second time.
With ``prior="residual"`` a part of the prior is in that loss already: `rediffuse.models.residual`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rediffuse.config import NeuralConfig
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.models.base import Model, TrainingData, Validation, is_clearly_better
from rediffuse.models.residual import GraphResidual
from rediffuse.models.theat import TemporalHeat, TemporalHeatConfig

# Added before a logarithm, to amounts whose largest is 1.
FLOOR = 1e-3
# The weights a of the recent popularity and b of the graph that are tried, all combinations.
POPULARITY_WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0)
GRAPH_WEIGHTS = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 3.0)
# Both item graphs keep at most so many entries, so many per item that is, but never fewer than the second number.
GRAPH_ENTRIES, LEAST_NEIGHBOURS = 50_000_000, 200


def log_scores(scores: Tensor, logits: bool) -> Tensor:
    """(B, n) scores on a scale that those of several models share: the logarithm of a share.

    Args:
        scores: (B, n) float32, finite.
        logits: whether they are logits; otherwise they are amounts, such as mass, counts or probabilities, and those
            below zero count as zero.
    """
    if logits:
        return torch.log_softmax(scores, dim=1)
    amounts = scores.clamp(min=0)
    largest = amounts.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (amounts / largest + FLOOR).log_()


class GraphPrior(nn.Module):
    """`theat` and the recent popularity, and their weights beside a network.

    Args:
        num_items: size of the catalogue.
        metric: the selection metric of the model that this is the prior of. The graph chooses its own options by the
            same metric with seen items filtered, and whether seen items count by the metric with seen items kept.
        residual: whether a part of the prior is in the training loss.

    Attributes:
        graph: fitted with the network's training interactions, and after all choices with those of validation too.
        residual: the part in the training loss, or None.
        weights: a and b.
    """

    def __init__(self, num_items: int, metric: str, residual: bool) -> None:
        super().__init__()
        neighbours = max(LEAST_NEIGHBOURS, GRAPH_ENTRIES // max(num_items, 1))
        options: dict[str, Any] = {
            "metric": f"{metric.removesuffix('/unseen')}/unseen",
            "neighbours": neighbours if neighbours < num_items else None,
        }
        self.graph = TemporalHeat(TemporalHeatConfig(**options), num_items)
        self.residual = GraphResidual() if residual else None
        self.metric = metric
        self.weights = (0.0, 0.0)

    @property
    def on(self) -> bool:
        """Whether the prior changes the scores of the network."""
        return any(self.weights)

    def fit(self, data: TrainingData) -> None:
        """Count the graph and the popularity of items."""
        own = dataclasses.replace(data, train=data.train.without_synthetic())
        self.graph.fit(own)
        self.graph.prepare()
        if self.residual is not None:
            self.residual.fit(data.train, self.graph)

    def calibrate(
        self,
        validate: Validation,
        network: Callable[[Histories, NDArray[np.int64]], tuple[Tensor, Tensor]],
        logits: bool,
    ) -> dict[str, Any]:
        """Choose the options of the graph, and then a and b.

        The network alone stays unless a choice is better by more than the standard error of the difference over users.

        Args:
            validate: the validation subset.
            network: the scores (B, num_items) of the network for histories and user numbers, and which of these users
                it knows (B,); the others get no prior.
            logits: as for `log_scores`.
        """
        of_graph = self.graph.calibrate(validate)
        self.graph.prepare()
        tried = list(itertools.product(POPULARITY_WEIGHTS, GRAPH_WEIGHTS))

        def scores(histories: Histories, users: NDArray[np.int64]) -> Iterator[Tensor]:
            found, known = network(histories, users)
            rows = histories.take(np.flatnonzero(known.cpu().numpy()))
            own = log_scores(found[known], logits)
            popularity, graph = self.parts(rows, own.device)
            for a, b in tried:
                every = found.clone()
                every[known] = own + a * popularity + b * graph
                yield every

        values = validate.compare(scores)
        means = [float(of_users.mean()) for of_users in values]
        best = int(np.argmax(means))
        chosen = best if is_clearly_better(values[best], values[0], validate.owners) else 0
        self.weights = tried[chosen]
        curve = [
            {"popularity": a, "graph": b, self.metric: mean, "chosen": number == chosen}
            for number, ((a, b), mean) in enumerate(zip(tried, means, strict=True))
        ]
        return {"settings": dict(zip(("popularity", "graph"), self.weights, strict=True)), "curve": curve} | {
            "theat": of_graph
        }

    def resolve(self, resolved: dict[str, Any]) -> None:
        """Apply what `calibrate` returned."""
        self.graph.resolve(resolved.get("theat", {}))
        settings = resolved.get("settings", {})
        self.weights = (settings.get("popularity", 0.0), settings.get("graph", 0.0))

    def parts(self, histories: Histories, device: torch.device) -> tuple[Tensor, Tensor]:
        """log(g + e) (1, num_items), and log(s + e) (B, num_items) of the histories."""
        settings = self.graph.settings
        scores = next(self.graph.scores_of(histories, np.full(len(histories), -1), [settings]))
        recent = torch.from_numpy(self.graph.filled_popularity(settings)).float()
        return log_scores(recent[None], False).to(device), log_scores(scores.to(device), False)

    def combine(self, scores: Tensor, histories: Histories, logits: bool) -> Tensor:
        """(B, num_items) what the model answers, from the scores (B, num_items) of its network."""
        a, b = self.weights
        popularity, graph = self.parts(histories.without_synthetic(), scores.device)
        return log_scores(scores, logits) + a * popularity + b * graph


class NeuralModel(Model):
    """A model that is trained by gradient, and can answer with a prior.

    The prior is applied in `score_with_fallback`, through which all scores pass. Users without a history get the
    fallback, as without a prior. `score_known`, `query_vectors` and `index_vectors` are those of the network.

    Class attributes:

    - ``learns_residual``: whether `loss` can hold a part of the prior.
    """

    Config = NeuralConfig
    config: NeuralConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    learns_residual: ClassVar[bool] = False

    def __init__(self, config: NeuralConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        if config.prior == "residual" and not self.learns_residual:
            raise ConfigError(
                f"{self.name} cannot have prior=residual: its loss is not a softmax over the item that follows a "
                "history.",
                "Set prior=head, which needs no change of the training.",
            )
        self.prior: GraphPrior | None = None
        if config.prior != "none":
            self.prior = GraphPrior(num_items, config.metric, config.prior == "residual")

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        if self.prior is not None:
            self.prior.fit(data)

    def add_item_rows(self, state: dict[str, Tensor], prefix: str, added: int) -> None:
        super().add_item_rows(state, prefix, added)
        if self.prior is not None:
            self.prior.graph.add_item_rows(state, f"{prefix}prior.graph.", added)

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Choose the weights of the prior. An override chooses first, applies its choices, and then calls this one."""
        if self.prior is None:
            return {}
        self.prior.weights = (0.0, 0.0)  # the scores are now those of the network alone

        def network(histories: Histories, users: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
            own = histories if self.reads_synthetic else histories.without_synthetic()
            known = torch.from_numpy((own.lengths > 0) | self.has_user_state(users))
            return self.score(histories, users=users), known.to(self.device)

        return {"prior": self.prior.calibrate(validate, network, self.network_gives_logits)}

    def resolve(self, resolved: dict[str, Any]) -> None:
        if self.prior is not None:
            self.prior.resolve(resolved.get("prior", {}))

    @property
    def refits(self) -> bool | str:
        return "prior" if self.prior is not None else False

    def refit(self, data: TrainingData) -> None:
        """Fit the graph of the prior again; the network stays as it is."""
        if self.prior is not None:
            self.prior.fit(data)

    @property
    def network_gives_logits(self) -> bool:
        """Whether the scores of the network are logits, see `rediffuse.models.base.Model.scores_are_logits`."""
        return True

    @property
    def scores_are_logits(self) -> bool:
        return self.network_gives_logits or (self.prior is not None and self.prior.on)

    @property
    def ranks_by_vectors(self) -> bool:
        return self.prior is None or not (self.prior.on or self.prior.residual is not None)

    def score_with_fallback(
        self,
        histories: Histories,
        users: NDArray[np.int64] | None,
        score: Callable[[Histories, NDArray[np.int64]], Tensor],
    ) -> Tensor:
        prior = self.prior
        if prior is None or not prior.on:
            return super().score_with_fallback(histories, users, score)
        return super().score_with_fallback(
            histories,
            users,
            lambda rows, users: prior.combine(score(rows, users), rows, self.network_gives_logits),
        )
