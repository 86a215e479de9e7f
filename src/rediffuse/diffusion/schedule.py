"""Noise schedules: how much of the signal is left at every timestep.

Notation of the whole package: T steps, t = 0..T-1, beta_t the variance added by step t,
abar_t = prod_{s<=t} (1 - beta_s) (``alphas_cumprod``), and abar_{-1} = 1.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from rediffuse.errors import ConfigError, RediffuseWarning, did_you_mean, refuse_unknown

Variance = Literal["fixed_small", "fixed_large"]

# Largest beta of the schedules that are discretised from a function abar(u) (Nichol & Dhariwal 2021).
_MAX_BETA = 0.999
# A schedule ends in noise if sqrt(abar) is at most this at its last step.
MOST_SIGNAL = 0.1
# DiffRec replaces the first beta by this when `beta_fixed` is on.
_FIXED_FIRST_BETA = 1e-5


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """The numbers of a diffusion process with T steps, all float64 of shape (T,).

    Attributes:
        name: name of the schedule, for messages.
        betas: beta_t.
        alphas_cumprod: abar_t.
    """

    name: str
    betas: Tensor
    alphas_cumprod: Tensor

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """abar_{t-1}, which is 1 at t = 0."""
        return torch.cat((torch.ones_like(self.alphas_cumprod[:1]), self.alphas_cumprod[:-1]))

    @cached_property
    def sqrt_alphas_cumprod(self) -> Tensor:
        """Scale of x_0 in x_t."""
        return self.alphas_cumprod.sqrt()

    @cached_property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor:
        """Scale of the noise in x_t."""
        return (1 - self.alphas_cumprod).sqrt()

    @cached_property
    def posterior_mean_coef1(self) -> Tensor:
        """c1_t, the weight of x_0 in the mean of q(x_{t-1} | x_t, x_0): DDPM (Ho et al. 2020), eq. 7."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Tensor:
        """c2_t, the weight of x_t in the same mean."""
        return (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(x_{t-1} | x_t, x_0): DDPM, eq. 7. It is 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def log_variance_fixed_small(self) -> Tensor:
        """log of the posterior variance; at t = 0, where that is -inf, the value of t = 1."""
        return _with_first(self.posterior_variance, self._second_variance).log()

    @cached_property
    def log_variance_fixed_large(self) -> Tensor:
        """log of beta_t; at t = 0 that of the posterior variance at t = 1 (released DiffuRec)."""
        return _with_first(self.betas, self._second_variance).log()

    @property
    def _second_variance(self) -> Tensor:
        # A schedule of one step has no second variance. No noise is drawn at t = 0, so any finite value will do.
        return self.posterior_variance[1] if self.steps > 1 else self.betas[0]

    @cached_property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t)."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def log_variance(self, variance: Variance) -> Tensor:
        """(T,) log variance of a reverse step: "fixed_small" or "fixed_large".

        Raises:
            ConfigError: the name is unknown.
        """
        if variance == "fixed_small":
            return self.log_variance_fixed_small
        if variance == "fixed_large":
            return self.log_variance_fixed_large
        raise ConfigError(
            f"Unknown variance {variance!r}.", did_you_mean(str(variance), ("fixed_small", "fixed_large"))
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> NoiseSchedule:
        """The schedule on another device or in another float type.

        Derived numbers are computed in this schedule's type and then cast: 1 - abar_t of a float32 abar_t has only two
        or three digits where abar_t is close to one.
        """

        def moved(value: Tensor) -> Tensor:
            return value.to(device=device, dtype=dtype)

        other = NoiseSchedule(self.name, moved(self.betas), moved(self.alphas_cumprod))
        other.__dict__.update({name: moved(getattr(self, name)) for name in _DERIVED})
        return other


_DERIVED = tuple(name for name, value in vars(NoiseSchedule).items() if isinstance(value, cached_property))


def _with_first(values: Tensor, first: Tensor) -> Tensor:
    return torch.cat((first[None], values[1:]))


def from_betas(betas: Tensor | Sequence[float], name: str = "from_betas") -> NoiseSchedule:
    """A schedule from its betas.

    Args:
        betas: (T,) numbers in (0, 1). The last may be 1, which leaves none of the signal.
        name: name of the schedule, for messages.

    Raises:
        ConfigError: there is no beta, or one is out of range.
    """
    values = torch.as_tensor(betas, dtype=torch.float64)
    if values.ndim != 1 or len(values) == 0:
        raise ConfigError(
            f"Noise schedule {name!r}: betas have shape {tuple(values.shape)}.",
            "Give a list of at least one number.",
        )
    return _checked(name, values, "Give betas above 0 and below 1; only the last may be 1.")


# Each step takes memory and, in sampling without respacing, a pass through the network.
MOST_STEPS = 100_000


def noise_schedule(name: str, steps: int, **params: float | bool) -> NoiseSchedule:
    """A noise schedule by name.

    Args:
        name: one of `SCHEDULES`; a hyphen may stand for an underscore.
        steps: T, at least 1.
        **params: parameters of the schedule; see its function in `rediffuse.diffusion.schedule`.

    Raises:
        ConfigError: unknown name or parameter, steps below 1, or a beta that leaves (0, 1].

    Warns:
        RediffuseWarning: the schedule does not end in noise, where a chain that starts from noise starts. Schedules of
            `NEED_NOT_END_IN_NOISE` are left out.
    """
    key = name.lower().replace("-", "_")
    if key not in SCHEDULES:
        raise ConfigError(f"Unknown noise schedule {name!r}.", did_you_mean(key, SCHEDULES))
    check_steps(f"Noise schedule {key!r}", steps)
    build = SCHEDULES[key]
    known = [parameter for parameter in inspect.signature(build).parameters if parameter != "steps"]
    refuse_unknown(f"Noise schedule {key!r}", params, known, "It has no parameters besides steps.")
    with torch.device("cpu"):  # also within a model that is built on the device "meta"
        schedule = _checked(key, build(steps, **params), _REMEDIES.get(key, "Use more steps."))
    left = float(schedule.sqrt_alphas_cumprod[-1])
    if key not in NEED_NOT_END_IN_NOISE and left > MOST_SIGNAL:
        warnings.warn(
            f"Noise schedule {key!r} with steps={steps} does not end in noise: {left:.2g} of the signal is left at its "
            "last step, and a chain that starts from noise starts there. Use more than 20 steps, or the schedule "
            "cosine, which ends in noise with any number.",
            RediffuseWarning,
            stacklevel=2,
        )
    return schedule


def check_steps(owner: str, steps: int) -> None:
    """Check that ``steps`` is a whole number of at least 1; raise a `ConfigError` otherwise."""
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ConfigError(f"{owner}: steps is {steps!r}.", "Give a whole number of at least 1.")
    if steps > MOST_STEPS:
        raise ConfigError(f"{owner}: steps is {steps:,}, more than {MOST_STEPS:,}.", "Give fewer; 1,000 are usual.")


def _checked(name: str, betas: Tensor, remedy: str) -> NoiseSchedule:
    # This form makes NaN out of range too.
    inside = (betas > 0) & (betas < 1)
    inside[-1] |= betas[-1] == 1
    if not bool(inside.all()):
        step = int((~inside).nonzero()[0])
        raise ConfigError(
            f"Noise schedule {name!r} with steps={len(betas)}: beta[{step}] = {betas[step].item():.6g} "
            f"is not in (0, 1{']' if step == len(betas) - 1 else ')'}.",
            remedy,
        )
    return NoiseSchedule(name, betas, torch.cumprod(1 - betas, dim=0))


def _discretised(abar: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """1 - abar((t + 1) / T) / abar(t / T), without a bound."""
    values = abar(torch.arange(steps + 1, dtype=torch.float64) / steps)
    return 1 - values[1:] / values[:-1]


def _cosine_abar(offset: float) -> Callable[[Tensor], Tensor]:
    return lambda u: ((u + offset) / (1 + offset) * (math.pi / 2)).cos() ** 2


def _linspace(start: float, end: float, steps: int) -> Tensor:
    return torch.linspace(start, end, steps, dtype=torch.float64)


def _ends(name: str, steps: int) -> tuple[float, float]:
    """The first and the last beta of Ho et al. for 1000 steps, 1e-4 and 0.02, scaled to ``steps`` steps."""
    scale = 1000 / steps
    start, end = 1e-4 * scale, 0.02 * scale
    # At 20 steps the end is 1: abar_{T-1} would be 0, where a network that predicts noise cannot start.
    if end >= 1:
        raise ConfigError(
            f"Noise schedule {name!r} with steps={steps}: beta[{steps - 1}] would be {end:.6g}, not below 1.",
            "Use more than 20 steps, or the schedule cosine, which ends in noise with any number.",
        )
    return start, end


def linear(steps: int) -> Tensor:
    """linspace(1e-4 s, 0.02 s), s = 1000 / T. Needs T > 20. DDPM (Ho et al. 2020), DiffuASR."""
    return _linspace(*_ends("linear", steps), steps)


def cosine(steps: int) -> Tensor:
    """abar(u) = cos^2((u + .008) / 1.008 pi/2), beta at most .999. Nichol & Dhariwal 2021, eq. 17."""
    return _discretised(_cosine_abar(0.008), steps).clamp(max=_MAX_BETA)


def cosine_clip(steps: int) -> Tensor:
    """As `cosine`, with beta kept within [1e-4, .9999]. DiffuASR."""
    return _discretised(_cosine_abar(0.008), steps).clamp(1e-4, 0.9999)


def sqrt(steps: int) -> Tensor:
    """abar(u) = 1 - sqrt(u + 1e-4), beta at most .999. Diffusion-LM (Li et al. 2022), appendix A."""
    return _discretised(lambda u: 1 - (u + 1e-4).sqrt(), steps).clamp(max=_MAX_BETA)


def trunc_cos(steps: int) -> Tensor:
    """abar(u) = cos^2((u + .1) / 1.1 pi/2), discretised to the left: abar_t = abar(t / T). DiffuRec."""
    abar = _cosine_abar(0.1)
    first = 1 - abar(torch.zeros(1, dtype=torch.float64))
    return torch.cat((first, _discretised(abar, steps)[:-1])).clamp(max=_MAX_BETA)


def trunc_lin(steps: int) -> Tensor:
    """linspace(1e-4 s + .01, .02 s + .01), s = 1000 / T; where that end exceeds 1, .001 s + .01. DiffuRec.

    With T <= 20, where it does, about sqrt(abar) = .7 is left at the last step.
    """
    scale = 1000 / steps
    end = 0.02 * scale + 0.01
    if end > 1:
        end = 0.001 * scale + 0.01
    return _linspace(1e-4 * scale + 0.01, end, steps)


def pw_lin(steps: int) -> Tensor:
    """Ten steps down from 1e-4 s + .01 to 1e-4 s, then up to .02 s; s = 1000 / T. Needs T > 20. DiffuRec."""
    start, end = _ends("pw_lin", steps)
    return torch.cat((_linspace(start + 0.01, start, 10), _linspace(start, end, steps - 10)))


def quad(steps: int) -> Tensor:
    """Squares of linspace(sqrt(1e-4 s), sqrt(.02 s)), s = 1000 / T. Needs T > 20. DiffuASR."""
    start, end = _ends("quad", steps)
    return _linspace(math.sqrt(start), math.sqrt(end), steps) ** 2


def sigmoid(steps: int) -> Tensor:
    """sigmoid(linspace(-6, 6)) between 1e-4 s and .02 s, s = 1000 / T. Needs T > 20. DiffuASR."""
    start, end = _ends("sigmoid", steps)
    return _linspace(-6, 6, steps).sigmoid() * (end - start) + start


def linear_var(
    steps: int,
    noise_scale: float = 0.1,
    noise_min: float = 1e-4,
    noise_max: float = 0.02,
    beta_fixed: bool = True,
    first_beta: float = _FIXED_FIRST_BETA,
) -> Tensor:
    """1 - abar_t = linspace(noise_scale noise_min, noise_scale noise_max). DiffRec (Wang et al. 2023), eq. 4.

    ``beta_fixed`` then sets beta_0 = ``first_beta``, and 1 - abar_t follows. DiffRec's release fixes 1e-5, except for
    L-DiffRec; DiffKG's release fixes 1e-4.
    """
    variance = _linspace(noise_scale * noise_min, noise_scale * noise_max, steps)
    abar = torch.cat((torch.ones(1, dtype=torch.float64), 1 - variance))
    betas = 1 - abar[1:] / abar[:-1]
    betas[1:] = betas[1:].clamp(max=_MAX_BETA)
    return _first_fixed(betas, first_beta) if beta_fixed else betas


def linear_scaled(
    steps: int,
    noise_scale: float = 0.1,
    noise_min: float = 1e-4,
    noise_max: float = 0.02,
    beta_fixed: bool = False,
) -> Tensor:
    """beta = linspace(noise_scale noise_min, noise_scale noise_max). Called `linear` in DiffRec's release."""
    betas = _linspace(noise_scale * noise_min, noise_scale * noise_max, steps)
    return _first_fixed(betas) if beta_fixed else betas


def binomial(steps: int, beta_fixed: bool = False) -> Tensor:
    """beta_t = 1 / (T - t + 1). Sohl-Dickstein et al. 2015; DiffRec's release."""
    betas = 1 / (steps - torch.arange(steps, dtype=torch.float64) + 1)
    return _first_fixed(betas) if beta_fixed else betas


def _first_fixed(betas: Tensor, first: float = _FIXED_FIRST_BETA) -> Tensor:
    return _with_first(betas, torch.tensor(first, dtype=torch.float64))


SCHEDULES: dict[str, Callable[..., Tensor]] = {
    build.__name__: build
    for build in (
        linear,
        cosine,
        cosine_clip,
        sqrt,
        trunc_cos,
        trunc_lin,
        pw_lin,
        quad,
        sigmoid,
        linear_var,
        linear_scaled,
        binomial,
    )
}

# A chain of DiffRec starts from data, so its schedules may leave most of the signal.
NEED_NOT_END_IN_NOISE = ("linear_var", "linear_scaled", "binomial")

_NOISE_REMEDY = (
    "Keep 0 < noise_min < noise_max and noise_scale * noise_max at most 1. "
    "Without noise there is no schedule: train the ablation (no diffusion) with diffusion=false."
)
_REMEDIES = {"linear_var": _NOISE_REMEDY, "linear_scaled": _NOISE_REMEDY}
