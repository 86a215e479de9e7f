"""How an answer is drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Called at every step as on_step(t, state, x0_hat): the timestep t, what the step starts from (B, d), or None
# where it is not in the space of `Model.index_vectors`, and what the network takes the end to be (B, d), which is.
StepCallback = Callable[[int, Tensor | None, Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """What a stochastic or a denoising model does to answer; other models look at none of it.

    Attributes:
        seed: of the noise.
        sampling_steps: of denoising; None: as many as were calibrated or configured.
        noise: what the noise is multiplied by; 1 is what the model was trained for.
        on_step: told every step.
    """

    seed: int = 0
    sampling_steps: int | None = None
    noise: float = 1.0
    on_step: StepCallback | None = None
