"""blend: several finished runs that answer together.

The scores z_k of the parts are brought to one scale, the logarithm of a share, and added with weights w_k >= 0 that sum
to 1 and are chosen on validation data:

    sum over k of w_k l_k(z_k)        l(z) = log softmax(z) for logits, log(z / max z + e) for amounts

A sum of logarithms asks that an item be likely under every part that has weight, which a sum of shares does not; and
the logarithm of an amount, not the amount, is what compares with the logits of a network. Each part alone is among the
choices. `rediffuse.training.blend` makes a run of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from rediffuse.config import ModelConfig
from rediffuse.data.histories import Histories
from rediffuse.errors import ConfigError
from rediffuse.models import external, model_class
from rediffuse.models.base import Model, TrainingData, Validation, is_clearly_better
from rediffuse.models.prior import log_scores
from rediffuse.models.sampling import Sampling

Weights = tuple[float, ...]
# Up to so many parts, all weights that are multiples of 1 / GRID are tried.
ALL_COMBINATIONS, GRID = 3, 10
# Otherwise one part after the other gets these shares of the whole, so many times over.
SHARES, ROUNDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7), 2


class BlendConfig(ModelConfig):
    """Options of a blend. Those of training have no effect."""

    metric: str = Field(
        "ndcg@10/unseen",
        description="The validation metric that the weights are chosen by; without /unseen, seen items are kept.",
    )
    parts: tuple[dict[str, Any], ...] = Field(
        (), description="The model, class and options of each run; set by `rediffuse blend`."
    )


class Blend(Model):
    """A weighted sum of the logarithms of the scores of its parts.

    Attributes:
        parts: the models, in the order of the runs.
        weights: one per part.
        filled: whether the parts are those of finished runs.
    """

    name = "blend"
    Config = BlendConfig
    config: BlendConfig  # pyright: ignore[reportIncompatibleVariableOverride]
    trained_by_gradient = False

    def __init__(self, config: BlendConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.parts = nn.ModuleList(_part(part, num_items, num_users) for part in config.parts)
        self.weights: Weights = (1.0,) + (0.0,) * (len(self.parts) - 1)
        self.filled = False

    def fill(self, models: Sequence[Model]) -> None:
        """Take the models of finished runs, which the options describe, as the parts."""
        self.parts = nn.ModuleList(models)
        self.filled = True

    @property
    def models(self) -> list[Model]:
        """The parts."""
        return [part for part in self.parts if isinstance(part, Model)]

    # --- what the parts need -------------------------------------------------------------------------------

    def check(self, data: TrainingData) -> None:
        if not self.filled:
            raise ConfigError(
                "A blend is not trained: it is made of finished runs.",
                "Run: rediffuse blend RUN RUN --data DATA -o OUT (Python: rediffuse.blend).",
            )

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return any(part.stochastic for part in self.models)

    @property
    def reads_synthetic(self) -> bool:  # type: ignore[override]
        return any(part.reads_synthetic for part in self.models)

    @property
    def reads_times(self) -> bool:  # type: ignore[override]
        return any(part.reads_times for part in self.models)

    @property
    def holds_users(self) -> bool:  # type: ignore[override]
        return any(part.holds_users for part in self.models)

    @property
    def max_sampling_steps(self) -> int | None:
        return min((part.max_sampling_steps for part in self.models if part.max_sampling_steps), default=None)

    def network_passes(self, sampling: Sampling) -> int:
        return sum(part.network_passes(sampling) for part in self.models)

    def has_user_state(self, users: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.logical_or.reduce([super().has_user_state(users), *(p.has_user_state(users) for p in self.models)])

    def prepare(self) -> None:
        for part in self.models:
            part.prepare()

    # --- choices -------------------------------------------------------------------------------------------

    def calibrate(self, validate: Validation) -> dict[str, Any]:
        """Choose the weights. The best part alone stays unless a choice is better by more than the standard error of
        the difference over users."""
        measured: dict[Weights, NDArray[np.float64]] = {}

        def measure(tried: list[Weights]) -> None:
            new = [weights for weights in dict.fromkeys(tried) if weights not in measured]

            def scores(histories: Histories, users: NDArray[np.int64]) -> Iterator[Tensor]:
                logs = self.logs(histories, users, Sampling(0))
                for weights in new:
                    yield _sum(logs, weights)

            if new:
                measured.update(zip(new, validate.compare(scores), strict=True))

        def best(tried: Sequence[Weights]) -> Weights:
            return max(tried, key=lambda weights: float(measured[weights].mean()))

        count = len(self.parts)
        alone = [tuple(float(k == other) for other in range(count)) for k in range(count)]
        if count <= ALL_COMBINATIONS:
            measure(simplex(count))
        else:
            measure(alone)
            for _, k in itertools.product(range(ROUNDS), range(count)):
                measure([with_share(best(list(measured)), k, share) for share in SHARES])
        start, found = best(alone), best(list(measured))
        chosen = found if is_clearly_better(measured[found], measured[start], validate.owners) else start
        curve = [
            {"weights": list(weights), self.config.metric: float(values.mean()), "chosen": weights == chosen}
            for weights, values in measured.items()
        ]
        return {"settings": {"weights": list(chosen)}, "curve": curve}

    def resolve(self, resolved: dict[str, Any]) -> None:
        if settings := resolved.get("settings"):
            self.weights = tuple(settings["weights"])
        for part, choices in zip(self.models, resolved.get("parts", ()), strict=False):
            part.resolve(choices)

    # --- scoring -------------------------------------------------------------------------------------------

    @property
    def scores_are_logits(self) -> bool:
        return True

    def score_known(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> Tensor:
        return _sum(self.logs(histories, users, sampling), self.weights)

    def logs(self, histories: Histories, users: NDArray[np.int64], sampling: Sampling) -> list[Tensor]:
        """(B, num_items) the logarithms of the scores of each part."""
        found = []
        for part in self.models:
            scores = part.score(histories, users=users, sampling=sampling).to(self.device)
            own = histories if part.reads_synthetic else histories.without_synthetic()
            unknown = torch.from_numpy((own.lengths == 0) & ~part.has_user_state(users)).to(scores.device)
            logs = log_scores(scores, part.scores_are_logits)
            logs[unknown] = log_scores(scores[unknown], False)  # the fallback, which counts interactions
            found.append(logs)
        return found


def _sum(logs: list[Tensor], weights: Weights) -> Tensor:
    total = torch.zeros_like(logs[0])
    for log, weight in zip(logs, weights, strict=True):
        if weight:
            total += weight * log
    return total


def simplex(count: int) -> list[Weights]:
    """All weights of ``count`` parts that are multiples of 1 / `GRID` and sum to 1."""
    grids = itertools.product(range(GRID + 1), repeat=count - 1)
    return [(*(n / GRID for n in some), (GRID - sum(some)) / GRID) for some in grids if sum(some) <= GRID]


def with_share(weights: Weights, part: int, share: float) -> Weights:
    """Weights in which one part has a share of the whole, and the others keep their proportions."""
    others = sum(weights) - weights[part]
    if not others:
        return weights
    scaled = [(1 - share) * weight / others for weight in weights]
    scaled[part] = share
    return tuple(round(weight, 6) for weight in scaled)


def _part(part: dict[str, Any], num_items: int, num_users: int) -> Model:
    """A new model of a part.

    Raises:
        ConfigError: its class cannot be imported, or has other options.
    """
    path = part["class"]
    try:
        kind = model_class(part["model"] if path.startswith("rediffuse.") else path)
    except external.ClassNotFoundError as error:
        remedy = external.how_to_import(path, part.get("distribution"))
        raise ConfigError(f"A blend needs the class {path} of {part['model']!r}: {error.problem}", remedy) from None
    return kind(kind.Config.build(None, part["config"]), num_items, num_users)
