import pytest
import torch

from rediffuse.diffusion import (
    classifier_free,
    classifier_guided,
    condition_dropout,
    ddim,
    noise_schedule,
    space_timesteps,
)
from rediffuse.errors import ConfigError

SCHEDULE = noise_schedule("linear", 1000)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(x_t, t):
    return 0.9 * x_t + torch.sin(t.to(x_t.dtype))[:, None]


def other(x_t, t):
    return 0.2 * x_t**2


def log_prob(x_t, t):
    """Any differentiable function; it need not be the log of a density. Rows do not depend on each other."""
    return -(x_t**4).sum(1) + torch.sin(x_t[:, 0] * x_t[:, 1]) * (1 + t)


def test_classifier_free():
    x, t = normal(4, 3), torch.tensor([0, 5, 500, 999])
    c, u = network(x, t), other(x, t)
    torch.testing.assert_close(classifier_free(network, other, 2.5)(x, t), 3.5 * c - 2.5 * u)
    # e_c + s (e_c - e_u) is the same.
    torch.testing.assert_close(classifier_free(network, other, 0.7)(x, t), c + 0.7 * (c - u))
    # A condition without effect changes nothing.
    torch.testing.assert_close(classifier_free(network, network, 9.0)(x, t), c)


def test_scale_0_is_no_guidance():
    assert classifier_free(network, other, 0) is network
    assert classifier_guided(network, log_prob, SCHEDULE, 0.0) is network


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_classifier_gradient_against_finite_differences(context):
    t = torch.tensor([0, 5, 500, 999])
    x = normal(4, 3)
    gradient = torch.zeros_like(x)
    step = 1e-6
    for j in range(3):
        shift = torch.zeros_like(x)
        shift[:, j] = step
        gradient[:, j] = (log_prob(x + shift, t) - log_prob(x - shift, t)) / (2 * step)
    expected = network(x, t) - 1.7 * (1 - SCHEDULE.alphas_cumprod[t]).sqrt()[:, None] * gradient
    with context():
        # A tensor made in inference mode cannot be differentiated; a solver's states are such tensors there.
        inside = x + 0.0
        result = classifier_guided(network, log_prob, SCHEDULE, 1.7)(inside, t + 0)
    assert not result.requires_grad
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)


def test_classifier_guidance_leads_towards_the_condition():
    """Data N(0, 1) and y | x_0 ~ N(x_0, w): the posterior is known, and only the right sign finds it."""
    width = 0.5
    abar = SCHEDULE.alphas_cumprod
    y = 1.2

    def noise_network(x_t, t):  # E[eps | x_t] for x_0 ~ N(0, 1)
        return (1 - abar[t]).sqrt()[:, None] * x_t

    def about_y(x_t, t):  # log p(y | x_t): x_0 | x_t ~ N(sqrt(abar) x_t, 1 - abar)
        variance = width + 1 - abar[t]
        return -((y - abar[t].sqrt() * x_t[:, 0]) ** 2) / (2 * variance)

    n = 4000
    guided = classifier_guided(noise_network, about_y, SCHEDULE, 1.0)
    result = ddim(guided, normal(n, 1), SCHEDULE, space_timesteps(1000, 200), prediction="eps")
    assert result.mean().item() == pytest.approx(y / (1 + width), abs=0.03)
    assert result.var().item() == pytest.approx(width / (1 + width), abs=0.03)


def test_condition_dropout():
    mask = condition_dropout(20_000, 0.1, generator=torch.Generator().manual_seed(0))
    assert mask.dtype == torch.bool
    assert mask.shape == (20_000,)
    assert mask.double().mean().item() == pytest.approx(0.1, abs=0.01)
    assert torch.equal(mask, condition_dropout(20_000, 0.1, generator=torch.Generator().manual_seed(0)))
    assert not condition_dropout(1000, 0.0).any()
    assert condition_dropout(1000, 1.0).all()
    with pytest.raises(ConfigError, match=r"probability is 1\.1"):
        condition_dropout(4, 1.1)
