"""How an answer is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Called at every step as watch(t, state, guess): the timestep t, what the step starts from (B, d), or None
# where it is not in the space of `Model.index_vectors`, and what the network takes the end to be (B, d), which is.
Watch = Callable[[int, Tensor | None, Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """What a stochastic or a denoising model does to answer; other models look at none of it.

    Attributes:
        seed: of the noise.
        steps: of denoising; None: as many as were calibrated or configured.
        noise: what the noise is multiplied by; 1 is what the model was trained for.
        watch: told every step.
    """

    seed: int = 0
    steps: int | None = None
    noise: float = 1.0
    watch: Watch | None = None
