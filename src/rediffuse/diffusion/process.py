"""The forward process, its posterior, and the three kinds of prediction.

``t`` is int64 and has one timestep per row (B,) or per token (B, L): it has the leading shape of ``x``, and the numbers
of its timesteps are broadcast over the trailing dimensions.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rediffuse.diffusion.schedule import NoiseSchedule
from rediffuse.errors import ConfigError, did_you_mean

Prediction = Literal["x0", "eps", "v"]
PREDICTIONS: tuple[Prediction, ...] = ("x0", "eps", "v")


def at_timesteps(values: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """``values[t]`` in the dtype and on the device of ``x``, shaped to multiply it.

    Args:
        values: (T,) numbers of a schedule.
        t: (...) int64, the leading shape of ``x``.
        x: (..., *) any tensor.

    Returns:
        (..., 1, 1, ..) with as many dimensions as ``x``.

    Raises:
        ConfigError: ``t`` is not shaped like the leading dimensions of ``x``.
    """
    if t.shape != x.shape[: t.ndim]:
        raise ConfigError(
            f"Timesteps of shape {tuple(t.shape)} do not fit x of shape {tuple(x.shape)}.",
            "Give one timestep per row (B,) or per token (B, L).",
        )
    found = values.to(device=x.device, dtype=x.dtype)[t.to(x.device)]
    return found.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def q_sample(schedule: NoiseSchedule, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise. DDPM (Ho et al. 2020), eq. 4."""
    return (
        at_timesteps(schedule.sqrt_alphas_cumprod, t, x0) * x0
        + at_timesteps(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * noise
    )


def posterior_mean(schedule: NoiseSchedule, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x_0) = c1_t x_0 + c2_t x_t. DDPM, eq. 7."""
    return (
        at_timesteps(schedule.posterior_mean_coef1, t, x_t) * x0
        + at_timesteps(schedule.posterior_mean_coef2, t, x_t) * x_t
    )


def posterior_variance(schedule: NoiseSchedule, x_t: Tensor, t: Tensor) -> Tensor:
    """Variance of q(x_{t-1} | x_t, x_0), shaped to multiply ``x_t``. DDPM, eq. 7. 0 at t = 0."""
    return at_timesteps(schedule.posterior_variance, t, x_t)


def predict_x0(
    schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction = "x0"
) -> Tensor:
    """The x_0 that a network's output implies.

    Args:
        schedule: schedule of the process.
        output: the network's output at (x_t, t), in the shape of ``x_t``.
        x_t: noised input.
        t: timesteps.
        prediction: what ``output`` is: ``x0``; ``eps``, the noise (DDPM); or
            ``v`` = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, appendix D).

    Raises:
        ConfigError: unknown ``prediction``.
    """
    check_prediction(prediction)
    if prediction == "x0":
        return output
    signal = at_timesteps(schedule.sqrt_alphas_cumprod, t, x_t)
    noise = at_timesteps(schedule.sqrt_one_minus_alphas_cumprod, t, x_t)
    if prediction == "eps":
        return (x_t - noise * output) / signal
    return signal * x_t - noise * output


def predict_eps(
    schedule: NoiseSchedule, output: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction = "x0"
) -> Tensor:
    """The noise in ``x_t`` that a network's output implies; arguments and errors as in `predict_x0`."""
    check_prediction(prediction)
    if prediction == "eps":
        return output
    signal = at_timesteps(schedule.sqrt_alphas_cumprod, t, x_t)
    noise = at_timesteps(schedule.sqrt_one_minus_alphas_cumprod, t, x_t)
    if prediction == "x0":
        return (x_t - signal * output) / noise
    return noise * x_t + signal * output


def prediction_target(
    schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor, prediction: Prediction = "x0"
) -> Tensor:
    """What a network should output at `q_sample` (x0, t, noise); errors as in `predict_x0`."""
    check_prediction(prediction)
    if prediction == "x0":
        return x0
    if prediction == "eps":
        return noise
    return (
        at_timesteps(schedule.sqrt_alphas_cumprod, t, x0) * noise
        - at_timesteps(schedule.sqrt_one_minus_alphas_cumprod, t, x0) * x0
    )


def check_prediction(prediction: str) -> None:
    """Raise a `ConfigError` unless ``prediction`` is one of `PREDICTIONS`."""
    if prediction not in PREDICTIONS:
        raise ConfigError(f"Unknown prediction {prediction!r}.", did_you_mean(str(prediction), PREDICTIONS))


def snr_weights(schedule: NoiseSchedule, prediction: Prediction = "x0", *, half: bool = False) -> Tensor:
    """(T,) weights of the squared error at t, as in the release of DiffRec (Wang et al. 2023); 1 at t = 0.

    - x0: SNR_{t-1} - SNR_t, the weight in the variational bound without its factor 1/2, which ``half`` adds for t >= 1.
    - eps: (1 - abar_t) / ((1 - abar_{t-1})^2 (1 - beta_t)), which times `NoiseSchedule.posterior_variance` would be the
      weight in that bound.

    Raises:
        ConfigError: the prediction has no such weights.
    """
    beta, abar, before = schedule.betas[1:], schedule.alphas_cumprod[1:], schedule.alphas_cumprod_prev[1:]
    if prediction == "x0":
        # SNR_{t-1} - SNR_t over a common denominator, to avoid the difference of two large, nearly equal numbers.
        later = before * beta / ((1 - before) * (1 - abar))
    elif prediction == "eps":
        later = (1 - abar) / ((1 - before) ** 2 * (1 - beta))
    else:
        raise ConfigError(f"No SNR weights for prediction {prediction!r}.", "Known: eps, x0.")
    return torch.cat((torch.ones_like(schedule.betas[:1]), 0.5 * later if half else later))


def rescale_timesteps(t: Tensor, steps: int) -> Tensor:
    """t * 1000 / T as float32: timesteps of ``steps`` steps on the scale of 1000 steps."""
    return t.float() * (1000 / steps)
