import pytest
import torch
from torch.distributions import Normal

from rediffuse.diffusion import (
    PREDICTIONS,
    from_betas,
    noise_schedule,
    posterior_mean,
    posterior_variance,
    predict_eps,
    predict_x0,
    prediction_target,
    q_sample,
    rescale_timesteps,
    snr_weights,
)
from rediffuse.errors import ConfigError

SCHEDULE = noise_schedule("trunc_lin", 32)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_q_sample_per_row_and_per_token():
    x0, noise = normal(3, 4, 5), normal(3, 4, 5, seed=1)
    rows = torch.tensor([0, 7, 31])
    x_t = q_sample(SCHEDULE, x0, rows, noise)
    for row, t in enumerate(rows):
        abar = SCHEDULE.alphas_cumprod[t]
        torch.testing.assert_close(x_t[row], abar.sqrt() * x0[row] + (1 - abar).sqrt() * noise[row])
    tokens = torch.tensor([[0, 1, 2, 3], [31, 30, 29, 28], [5, 5, 5, 5]])
    by_token = q_sample(SCHEDULE, x0, tokens, noise)
    for row in range(3):
        for token in range(4):
            alone = q_sample(SCHEDULE, x0[row, token, None], tokens[row, token, None], noise[row, token, None])
            torch.testing.assert_close(by_token[row, token], alone[0])


def test_q_sample_keeps_the_dtype_and_refuses_a_misshapen_t():
    x0 = normal(3, 4, dtype=torch.float32)
    assert q_sample(SCHEDULE, x0, torch.tensor([0, 1, 2]), x0).dtype == torch.float32
    with pytest.raises(ConfigError, match=r"\(4,\) do not fit x of shape \(3, 4\)"):
        q_sample(SCHEDULE, x0, torch.tensor([0, 1, 2, 3]), x0)


def test_q_sample_has_the_moments_of_the_chain_of_single_steps():
    n = 200_000
    generator = torch.Generator().manual_seed(0)
    schedule = from_betas([0.1, 0.3, 0.2])
    x = torch.full((n,), 1.5, dtype=torch.float64)
    for beta in schedule.betas:
        z = torch.randn(n, generator=generator, dtype=torch.float64)
        x = (1 - beta).sqrt() * x + beta.sqrt() * z
    z = torch.randn(n, generator=generator, dtype=torch.float64)
    jump = q_sample(schedule, torch.full((n,), 1.5, dtype=torch.float64), torch.full((n,), 2), z)
    abar = 0.9 * 0.7 * 0.8
    for sample in (x, jump):
        assert sample.mean().item() == pytest.approx(1.5 * abar**0.5, abs=0.01)
        assert sample.var().item() == pytest.approx(1 - abar, abs=0.01)


@pytest.mark.parametrize("t", [1, 2, 17, 30])
def test_posterior_is_bayes_rule(t):
    """q(x_{t-1} | x_t, x_0) by multiplying two densities on a grid."""
    x0, x_t = 0.7, -0.4
    before, beta = SCHEDULE.alphas_cumprod[t - 1], SCHEDULE.betas[t]
    grid = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    log_density = Normal(before.sqrt() * x0, (1 - before).sqrt()).log_prob(grid)
    log_density += Normal((1 - beta).sqrt() * grid, beta.sqrt()).log_prob(torch.tensor(x_t))
    density = torch.softmax(log_density, dim=0)
    mean = (density * grid).sum()
    variance = (density * (grid - mean) ** 2).sum()

    at = torch.tensor([t])
    point = torch.tensor([[x_t]], dtype=torch.float64)
    assert posterior_mean(SCHEDULE, torch.tensor([[x0]], dtype=torch.float64), point, at).item() == pytest.approx(
        mean.item(), abs=1e-8
    )
    assert posterior_variance(SCHEDULE, point, at).item() == pytest.approx(variance.item(), abs=1e-8)


def test_posterior_at_0_is_x0():
    x0, x_t, t = normal(2, 3), normal(2, 3, seed=1), torch.zeros(2, dtype=torch.int64)
    torch.testing.assert_close(posterior_mean(SCHEDULE, x0, x_t, t), x0, rtol=1e-12, atol=1e-12)
    assert posterior_variance(SCHEDULE, x_t, t).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_predictions_round_trip(prediction):
    x0, noise = normal(32, 6), normal(32, 6, seed=1)
    t = torch.arange(32)
    x_t = q_sample(SCHEDULE, x0, t, noise)
    output = prediction_target(SCHEDULE, x0, noise, t, prediction)
    torch.testing.assert_close(predict_x0(SCHEDULE, output, x_t, t, prediction), x0, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(predict_eps(SCHEDULE, output, x_t, t, prediction), noise, rtol=1e-10, atol=1e-10)


def test_v_is_the_derivative_of_x_on_the_circle():
    """v = dx/dphi for x = cos(phi) x0 + sin(phi) eps (Salimans & Ho 2022, appendix D)."""
    x0, noise, t = normal(1, 4), normal(1, 4, seed=1), torch.tensor([9])
    phi = SCHEDULE.sqrt_alphas_cumprod[9].acos()
    step = 1e-6

    def x(angle):
        return angle.cos() * x0 + angle.sin() * noise

    slope = (x(phi + step) - x(phi - step)) / (2 * step)
    torch.testing.assert_close(prediction_target(SCHEDULE, x0, noise, t, "v"), slope, rtol=1e-8, atol=1e-8)


def test_unknown_prediction():
    x = normal(1, 2)
    t = torch.tensor([0])
    for function in (predict_x0, predict_eps, prediction_target):
        with pytest.raises(ConfigError, match="Unknown prediction 'noise'"):
            function(SCHEDULE, x, x, t, "noise")


def test_snr_weights():
    snr = SCHEDULE.alphas_cumprod / (1 - SCHEDULE.alphas_cumprod)
    weights = snr_weights(SCHEDULE)
    torch.testing.assert_close(weights[1:], snr[:-1] - snr[1:], rtol=1e-9, atol=0)
    assert weights[0] == 1
    half = snr_weights(SCHEDULE, half=True)
    torch.testing.assert_close(half[1:], weights[1:] / 2)
    assert half[0] == 1
    # At t = 1 and betas .2, .5: abar .8, .4; (1 - .4) / ((1 - .8)^2 (1 - .5)) = 30.
    assert snr_weights(from_betas([0.2, 0.5]), "eps").tolist() == pytest.approx([1, 30])
    with pytest.raises(ConfigError, match="No SNR weights"):
        snr_weights(SCHEDULE, "v")


def test_rescale_timesteps():
    assert rescale_timesteps(torch.tensor([0, 1, 31]), 32).tolist() == [0, 31.25, 968.75]
