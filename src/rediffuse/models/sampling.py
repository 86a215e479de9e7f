"""Options of scoring: the noise and the denoising steps of a stochastic model, and the guidance by a condition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Called as on_step(t, state, x0_hat) at every denoising step: the timestep; the state before the step (B, d), or None
# if it is not in the space of `Model.index_vectors`; and the network's estimate of x_0 (B, d) in that space.
StepCallback = Callable[[int, Tensor | None, Tensor], None]


@dataclass(frozen=True)
class Sampling:
    """How a stochastic or a denoising model samples; other models ignore it.

    Attributes:
        seed: seed of the noise.
        sampling_steps: denoising steps; None: as calibrated or configured.
        noise: factor of the noise; models are trained for 1.
        on_step: called at every denoising step.
        temperature: of the condition that guides a model; None: as configured.
        guidance_scale: weight of the guidance; None: as configured.
    """

    seed: int = 0
    sampling_steps: int | None = None
    noise: float = 1.0
    on_step: StepCallback | None = None
    temperature: float | None = None
    guidance_scale: float | None = None

    def steps(self, chosen: int, most: int | None) -> int:
        """The denoising steps to take: those asked for, else ``chosen``; ``most`` at most, and one if it is None."""
        return 1 if most is None else min(self.sampling_steps or chosen, most)
