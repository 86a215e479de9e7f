"""Solvers: the denoising trajectory from noise to x_0.

A solver is a function. It has no state, so threads may share a model, and it records no gradient. All solvers take the
same arguments:

    network: ``network(x_t, t)`` with x_t like ``x`` and t (B,) int64, a timestep of ``schedule`` (also when steps are
        skipped). Returns what ``prediction`` says, in the shape of x_t.
    x: (B, ...) the start: noise, or an x_0 noised to the last of ``timesteps``.
    schedule: the schedule that the network was trained with.
    timesteps: the timesteps to visit, ascending (`space_timesteps`); by default all. They are visited backwards.
    prediction: "x0", "eps" or "v", see `rediffuse.diffusion.predict_x0`.
    generator: a `torch.Generator`, or a function that returns noise like a given tensor (for example noise of each row
        that does not depend on the other rows). By default torch's global generator.
    callback: called as ``callback(step, t, x_t, x0_hat)`` with step = 0, 1, .., the timestep as an int, the state
        before the step and the network's estimate of x_0.

They return x_0, in the shape and dtype of ``x``. They raise `ConfigError` for unknown options, for timesteps that are
out of range or not ascending, and for a start without signal if the network predicts noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

from rediffuse.diffusion.process import Prediction, check_prediction, predict_eps, predict_x0
from rediffuse.diffusion.respace import respace
from rediffuse.diffusion.schedule import NoiseSchedule, Variance
from rediffuse.errors import ConfigError, did_you_mean

Network = Callable[[Tensor, Tensor], Tensor]
NoiseSource = Callable[[Tensor], Tensor]
Callback = Callable[[int, int, Tensor, Tensor], None]


class Solver(Protocol):
    """The signature of a solver."""

    def __call__(
        self,
        network: Network,
        x: Tensor,
        schedule: NoiseSchedule,
        timesteps: Sequence[int] | None = None,
        *,
        prediction: Prediction = "x0",
        generator: Generator | NoiseSource | None = None,
        callback: Callback | None = None,
    ) -> Tensor: ...


@torch.no_grad()
def ancestral(
    network: Network,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | None = None,
    *,
    prediction: Prediction = "x0",
    generator: Generator | NoiseSource | None = None,
    callback: Callback | None = None,
    variance: Variance | None = "fixed_small",
) -> Tensor:
    """Ancestral sampling: x_{t-1} ~ N(c1_t x0_hat + c2_t x_t, var_t). DDPM (Ho et al. 2020), algorithm 2.

    Arguments of every solver, and ``variance``: "fixed_small" is the posterior variance, "fixed_large" is beta_t
    (DiffuRec's release), and None adds no noise (DiffRec).
    """
    short, kept = _start(schedule, timesteps, prediction)
    noise_like = _noise_source(generator)
    c1, c2 = short.posterior_mean_coef1.tolist(), short.posterior_mean_coef2.tolist()
    deviation = (short.log_variance(variance) / 2).exp().tolist() if variance is not None else None
    for step, i in enumerate(reversed(range(len(kept)))):
        t = _timesteps_of(x, kept[i])
        x0 = predict_x0(schedule, network(x, t).to(x.dtype), x, t, prediction)
        if callback is not None:
            callback(step, kept[i], x, x0)
        if i == 0:
            x = x0  # c1_0 = 1 and c2_0 = 0, without their rounding
            break
        x = c1[i] * x0 + c2[i] * x
        if deviation is not None:
            x = x + deviation[i] * noise_like(x)
    return x


@torch.no_grad()
def ddim(
    network: Network,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | None = None,
    *,
    prediction: Prediction = "x0",
    generator: Generator | NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM: sqrt(abar_n) x0_hat + sqrt(1 - abar_n - s^2) eps_hat + s z, n before t. Song et al. 2021, eq. 12, 16.

    Arguments of every solver, and ``eta`` in [0, 1]: 0 adds no noise, 1 is `ancestral` with the small variance.
    """
    if not 0 <= eta <= 1:
        raise ConfigError(f"ddim: eta is {eta!r}.", "Give a number from 0 (no noise) to 1 (as ancestral).")
    short, kept = _start(schedule, timesteps, prediction)
    noise_like = _noise_source(generator)
    before = short.alphas_cumprod_prev.tolist()
    deviation = (eta * short.posterior_variance.sqrt()).tolist()
    for step, i in enumerate(reversed(range(len(kept)))):
        t = _timesteps_of(x, kept[i])
        output = network(x, t).to(x.dtype)
        x0 = predict_x0(schedule, output, x, t, prediction)
        if callback is not None:
            callback(step, kept[i], x, x0)
        if i == 0:
            x = x0
            break
        eps = predict_eps(schedule, output, x, t, prediction)
        # At eta = 1 the difference can be a rounding error below zero.
        towards = math.sqrt(max(0.0, 1 - before[i] - deviation[i] ** 2))
        x = math.sqrt(before[i]) * x0 + towards * eps
        if eta > 0:
            x = x + deviation[i] * noise_like(x)
    return x


@torch.no_grad()
def dpmpp_2m(
    network: Network,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | None = None,
    *,
    prediction: Prediction = "x0",
    generator: Generator | NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2: of second order, from two estimates of x_0, without noise.

    Arguments of every solver; ``generator`` is not used. The first step is of first order, because there is no earlier
    estimate. The last goes to abar = 1, which is x0_hat itself.
    """
    short, kept = _start(schedule, timesteps, prediction)
    alpha = short.sqrt_alphas_cumprod.tolist()
    sigma = short.sqrt_one_minus_alphas_cumprod.tolist()
    log_snr_half = (short.snr.log() / 2).tolist()  # lambda = log(alpha / sigma), -inf where abar is 0
    older: Tensor | None = None
    for step, i in enumerate(reversed(range(len(kept)))):
        t = _timesteps_of(x, kept[i])
        x0 = predict_x0(schedule, network(x, t).to(x.dtype), x, t, prediction)
        if callback is not None:
            callback(step, kept[i], x, x0)
        if i == 0:
            x = x0
            break
        estimate = x0
        if older is not None:
            h, h_before = log_snr_half[i - 1] - log_snr_half[i], log_snr_half[i] - log_snr_half[i + 1]
            # 1 / (2 r) with r = h_before / h. A step from abar = 0 is infinitely long, which gives 0.
            estimate = x0 + h / (2 * h_before) * (x0 - older)
        older = x0
        # alpha_n (1 - e^{-h}) without h, which is infinite from abar = 0.
        ratio = sigma[i - 1] / sigma[i]
        x = ratio * x + (alpha[i - 1] - ratio * alpha[i]) * estimate
    return x


@torch.no_grad()
def one_step(
    network: Network,
    x: Tensor,
    schedule: NoiseSchedule,
    timesteps: Sequence[int] | None = None,
    *,
    prediction: Prediction = "x0",
    generator: Generator | NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """One step: x0_hat at the last timestep.

    Arguments of every solver; ``generator`` is not used.
    """
    _, kept = _start(schedule, timesteps, prediction)
    t = _timesteps_of(x, kept[-1])
    x0 = predict_x0(schedule, network(x, t).to(x.dtype), x, t, prediction)
    if callback is not None:
        callback(0, kept[-1], x, x0)
    return x0


SOLVERS: dict[str, Solver] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "one_step": one_step,
}


def solver(name: str) -> Solver:
    """A solver by name: one of `SOLVERS`; a hyphen may stand for an underscore.

    Raises:
        ConfigError: the name is unknown.
    """
    key = name.lower().replace("-", "_")
    if key not in SOLVERS:
        raise ConfigError(f"Unknown solver {name!r}.", did_you_mean(key, SOLVERS))
    return SOLVERS[key]


def _start(
    schedule: NoiseSchedule, timesteps: Sequence[int] | None, prediction: Prediction
) -> tuple[NoiseSchedule, list[int]]:
    """The schedule of the visited timesteps, and these timesteps, after checking the arguments."""
    check_prediction(prediction)
    short, numbers = respace(schedule, range(schedule.steps) if timesteps is None else timesteps)
    if prediction == "eps" and float(short.alphas_cumprod[-1]) == 0:
        raise ConfigError(
            f"Noise schedule {schedule.name!r} leaves none of the signal at t={int(numbers[-1])}: "
            "a network that predicts noise cannot start there.",
            "Start from an earlier timestep, or predict x0 or v.",
        )
    return short, numbers.tolist()


def _timesteps_of(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _noise_source(generator: Generator | NoiseSource | None) -> NoiseSource:
    if generator is None:
        return torch.randn_like
    if not isinstance(generator, Generator):
        return generator
    source = generator  # noise is drawn on its device, so a CPU generator gives the same noise on every machine

    def noise_like(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=source, dtype=x.dtype, device=source.device).to(x.device)

    return noise_like
