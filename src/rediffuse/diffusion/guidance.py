"""Guidance of samples towards a condition. The functions wrap networks for the solvers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from rediffuse.diffusion.process import at_timesteps
from rediffuse.diffusion.schedule import NoiseSchedule
from rediffuse.diffusion.solvers import Network
from rediffuse.errors import ConfigError


def classifier_free(conditional: Network, unconditional: Network, scale: float) -> Network:
    """Classifier-free guidance: (1 + s) e_c - s e_u. Ho & Salimans 2022, eq. 6.

    For sampling only; the network must have been trained with `condition_dropout`.

    Args:
        conditional: the network with its condition; it may predict x0, eps or v.
        unconditional: the network with the null condition.
        scale: s; at 0 the result is ``conditional`` itself.
    """
    if scale == 0:
        return conditional

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        return (1 + scale) * conditional(x_t, t) - scale * unconditional(x_t, t)

    return guided


def classifier_guided(
    network: Network, log_prob: Callable[[Tensor, Tensor], Tensor], schedule: NoiseSchedule, scale: float
) -> Network:
    """Classifier guidance: eps - s sqrt(1 - abar_t) grad_x log p(y | x_t). Dhariwal & Nichol 2021, algorithm 2.

    For sampling only, with networks that predict noise. Works under `torch.no_grad` and `torch.inference_mode`.

    Args:
        network: predicts eps.
        log_prob: ``log_prob(x_t, t)`` gives (B,) the log probability of the condition, differentiable in x_t. (It is
            minus a loss.)
        schedule: schedule of the network.
        scale: s; at 0 the result is ``network`` itself.
    """
    if scale == 0:
        return network

    def guided(x_t: Tensor, t: Tensor) -> Tensor:
        # Tensors of inference mode cannot be differentiated, so it is left as well.
        with torch.inference_mode(False), torch.enable_grad():
            point = x_t.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(point, t.clone()).sum(), point)
        factor = at_timesteps(schedule.sqrt_one_minus_alphas_cumprod, t, x_t)
        return network(x_t, t) - scale * factor * gradient

    return guided


def condition_dropout(
    batch: int,
    probability: float,
    *,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw the rows that are trained without their condition. Ho & Salimans 2022, algorithm 1.

    Args:
        batch: B, the number of rows.
        probability: probability that a row loses its condition; 0.1 is usual.
        generator: source of randomness; the draw happens on its device.
        device: device of the result.

    Returns:
        (B,) bool, True where the condition is dropped: ``torch.where(mask[:, None], null, condition)``.

    Raises:
        ConfigError: the probability is not in [0, 1].
    """
    if not 0 <= probability <= 1:
        raise ConfigError(f"condition_dropout: probability is {probability!r}.", "Give a number from 0 to 1.")
    draw_on = generator.device if generator is not None else device
    return (torch.rand(batch, generator=generator, device=draw_on) < probability).to(device)
