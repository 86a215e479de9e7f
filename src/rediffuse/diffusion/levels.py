"""How large what a model noises is beside the noise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from rediffuse.diffusion.schedule import MOST_SIGNAL, NoiseSchedule


@dataclass(frozen=True)
class NoiseLevels:
    """The scales of a diffusion process whose noise has variance 1 in each element of x_0.

    Attributes:
        what: what is noised, for example "item vectors".
        rms: root mean square of the elements of x_0.
        timesteps: the first, the middle and the last one.
        snr: at each of these, abar_t rms^2 / (1 - abar_t), the signal-to-noise ratio.
        signal_left: sqrt(abar) at the last timestep.
        starts_from_noise: whether the reverse chain starts from noise, as if no signal were left.
        estimate_rms: root mean square of the elements of the network's estimate of x_0; None: not measured.
    """

    what: str
    rms: float
    timesteps: tuple[int, int, int]
    snr: tuple[float, float, float]
    signal_left: float
    starts_from_noise: bool
    estimate_rms: float | None = None

    def record(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self) | {"timesteps": list(self.timesteps), "snr": list(self.snr)}

    def remark(self) -> str | None:
        """A sentence on a scale that does not fit the noise, or None."""
        if self.snr[0] < 1:
            return (
                f"The noise hides the {self.what} at every timestep: their root mean square is {self.rms:.3g}, so the "
                f"signal-to-noise ratio is {self.snr[0]:.2g} at the first timestep and falls from there."
            )
        if self.starts_from_noise and self.snr[2] > MOST_SIGNAL:
            return (
                f"The {self.what} are not noise at the last timestep, where sampling starts as if they were: their "
                f"root mean square is {self.rms:.3g}, and the signal-to-noise ratio there is {self.snr[2]:.2g}."
            )
        return None


def noise_levels(
    schedule: NoiseSchedule,
    what: str,
    mean_square: float,
    *,
    starts_from_noise: bool,
    estimate_mean_square: float | None = None,
) -> NoiseLevels:
    """The `NoiseLevels` of x_0 with this mean square of its elements."""
    timesteps = 0, schedule.steps // 2, schedule.steps - 1
    first, middle, last = (float(schedule.snr[t]) * mean_square for t in timesteps)
    return NoiseLevels(
        what,
        mean_square**0.5,
        timesteps,
        (first, middle, last),
        float(schedule.sqrt_alphas_cumprod[-1]),
        starts_from_noise,
        None if estimate_mean_square is None else estimate_mean_square**0.5,
    )
