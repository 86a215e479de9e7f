"""Signal-to-noise ratios beside those of drawn states."""

from __future__ import annotations

import re

import pytest
import torch

from rediffuse.diffusion import noise_levels, noise_schedule, q_sample


@pytest.mark.parametrize("rms", [0.07, 1.0, 3.0])
def test_ratios_are_those_of_drawn_states(rms):
    schedule = noise_schedule("trunc_lin", 32)
    torch.manual_seed(0)
    x_0 = rms * torch.randn(2000, 100, dtype=torch.float64)
    levels = noise_levels(schedule, "vectors", float(x_0.square().mean()), starts_from_noise=True)
    assert levels.rms == pytest.approx(rms, rel=0.01)
    assert levels.timesteps == (0, 16, 31)
    for t, found in zip(levels.timesteps, levels.snr, strict=True):
        noise, at = torch.randn_like(x_0), torch.full((len(x_0),), t)
        x_t = q_sample(schedule, x_0, at, noise)
        signal = q_sample(schedule, x_0, at, torch.zeros_like(noise))
        assert found == pytest.approx((signal.square().mean() / (x_t - signal).square().mean()).item(), rel=0.02)
    assert levels.signal_left == pytest.approx(9.90129877e-07**0.5)


@pytest.mark.parametrize(
    ("schedule", "rms", "starts_from_noise", "said"),
    [
        (noise_schedule("trunc_lin", 32), 0.07, True, r"hides the vectors at every timestep: .* 0.07, .* 0\.37 at the"),
        (noise_schedule("trunc_lin", 32), 0.2, True, None),
        (noise_schedule("trunc_lin", 32), 1.0, True, None),
        (noise_schedule("trunc_cos", 32), 10.0, True, "not noise at the last timestep"),
        (noise_schedule("linear_var", 5), 1.0, False, None),  # a chain that starts from rows
        (
            noise_schedule("linear_var", 5, noise_scale=49.0, noise_min=0.01, beta_fixed=False),
            0.01,
            False,
            "hides the vectors",
        ),
    ],
)
def test_scales_that_do_not_fit_the_noise_are_remarked(schedule, rms, starts_from_noise, said):
    remark = noise_levels(schedule, "vectors", rms**2, starts_from_noise=starts_from_noise).remark()
    if said is None:
        assert remark is None
    else:
        assert remark is not None
        assert re.search(said, remark)


def test_one_step():
    levels = noise_levels(noise_schedule("cosine", 1), "vectors", 1.0, starts_from_noise=True, estimate_mean_square=4.0)
    assert levels.timesteps == (0, 0, 0)
    assert levels.estimate_rms == 2
    assert levels.record()["snr"] == [pytest.approx(1 / 999)] * 3
