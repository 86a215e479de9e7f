import math
import warnings

import pytest
import torch

from rediffuse.diffusion import SCHEDULES, from_betas, noise_schedule, snr_weights
from rediffuse.errors import ConfigError, RediffuseWarning


def numbers(values, *at):
    return [values[i].item() for i in at]


# Computed by the released DiffuRec code at T = 32: beta[0, 1, 15, 31], abar[0, 15, 31].
AT_32 = {
    "linear": ([0.003125, 0.02318548, 0.30403226, 0.625], [0.996875, 0.0630179503, 1.64924040e-06]),
    "cosine": ([0.00358157, 0.00831588, 0.08968548, 0.999], [0.996418427, 0.493843590, 2.36997027e-06]),
    "sqrt": ([0.16874678, 0.08887713, 0.07121197, 0.999], [0.831253220, 0.295780315, 1.58567849e-05]),
    "trunc_cos": ([0.02025351, 0.01476407, 0.08614201, 0.74950149], [0.97974649, 0.47323786, 0.00199006]),
    "trunc_lin": ([0.013125, 0.03318548, 0.31403226, 0.635], [0.986875, 0.0519829095, 9.90129877e-07]),
    "pw_lin": ([0.013125, 0.01201389, 0.15119048, 0.625], [0.986875, 0.564142267, 9.49150431e-05]),
}


@pytest.mark.parametrize("name", AT_32)
def test_released_diffurec_vectors(name):
    schedule = noise_schedule(name, steps=32)
    betas, abar = AT_32[name]
    assert schedule.betas.dtype == schedule.alphas_cumprod.dtype == torch.float64
    assert numbers(schedule.betas, 0, 1, 15, 31) == pytest.approx(betas, abs=5e-9)
    assert numbers(schedule.alphas_cumprod, 0, 15, 31) == pytest.approx(abar, rel=5e-6)


def test_trunc_lin_posterior_and_long_vectors():
    schedule = noise_schedule("trunc_lin", steps=32)
    c1, c2 = schedule.posterior_mean_coef1, schedule.posterior_mean_coef2
    assert numbers(c1, 0, 1, 31) == pytest.approx([1, 0.71862756, 0.00104586], abs=5e-9)
    assert numbers(c2, 0, 1, 31) == pytest.approx([0, 0.28131671, 0.60415126], abs=5e-9)
    assert numbers(noise_schedule("trunc_lin", 1000).betas, 0, 999) == pytest.approx([0.0101, 0.03])


# Settings of linear_var in DiffRec's released code, for small and large catalogues, and of L-DiffRec.
TOY = {"steps": 10, "noise_scale": 0.01, "noise_min": 5e-4, "noise_max": 0.005}
BOOK = TOY | {"noise_max": 0.01}
SHORT = {"steps": 5, "noise_scale": 1e-4, "noise_min": 5e-4, "noise_max": 0.005}
LATENT = {"steps": 5, "noise_scale": 0.5, "noise_min": 0.001, "noise_max": 0.005, "beta_fixed": False}


def test_linear_var_toy():
    schedule = noise_schedule("linear-var", **TOY)
    # 1 - abar_t = 5e-6 (t + 1), so beta_t = 5e-6 / (1 - 5e-6 t); then beta_0 is fixed, and abar follows. The other
    # numbers are beta_t sqrt(abar_{t-1}) / (1 - abar_t), (1 - abar_{t-1}) sqrt(1 - beta_t) / (1 - abar_t), and
    # SNR_{t-1} - SNR_t.
    assert numbers(schedule.betas, 0, 1, 2, 9) == pytest.approx(
        [1e-5, 5.0000250e-6, 5.0000500e-6, 5.00022501e-6], rel=1e-8
    )
    assert schedule.alphas_cumprod[9].item() == pytest.approx(0.999945, abs=1e-9)
    assert schedule.posterior_mean_coef1.tolist() == pytest.approx(
        [
            1,
            0.33333389,
            0.25000125,
            0.2000016,
            0.16666847,
            0.14285908,
            0.12500203,
            0.11111321,
            0.10000215,
            0.09091128,
        ],
        abs=5e-9,
    )
    assert numbers(schedule.posterior_mean_coef2, 0, 1, 2, 3, 4, 9) == pytest.approx(
        [0, 0.66666611, 0.74999875, 0.7999984, 0.83333153, 0.90908872], abs=5e-9
    )
    assert snr_weights(schedule).tolist() == pytest.approx(
        [
            1,
            33333.2222,
            16666.6528,
            10000.0050,
            6666.67556,
            4761.91383,
            3571.43686,
            2777.78511,
            2222.22864,
            1818.18744,
        ],
        rel=1e-8,
    )


def test_linear_var_book_short_and_latent():
    book = noise_schedule("linear_var", **BOOK)
    assert numbers(book.posterior_mean_coef1, 1, 9) == pytest.approx([0.51351483, 0.1005338], abs=5e-9)
    assert numbers(snr_weights(book), 1, 9) == pytest.approx([51351.2264, 1064.43002], rel=1e-8)
    short = noise_schedule("linear_var", **SHORT)
    assert short.posterior_mean_coef1.tolist() == pytest.approx(
        [1, 0.01112479, 0.01100239, 0.01088266, 0.0107655], abs=5e-9
    )
    assert snr_weights(short)[1].item() == pytest.approx(1112.4736, rel=1e-7)
    latent = noise_schedule("linear_var", **LATENT)
    assert latent.alphas_cumprod.tolist() == pytest.approx([0.9995, 0.999, 0.9985, 0.998, 0.9975], abs=1e-12)
    assert snr_weights(latent).tolist() == pytest.approx([1, 1000, 333.33333, 166.66667, 100], rel=1e-7)
    assert latent.posterior_mean_coef1[1].item() == pytest.approx(0.50012505, abs=5e-9)


def test_linear_of_diffuasr_at_1000():
    schedule = noise_schedule("linear", 1000)
    assert numbers(schedule.betas, 0, 999) == pytest.approx([1e-4, 0.02])
    # DiffuASR's released code accumulates abar in float32, which changes the eighth digit.
    assert numbers(schedule.alphas_cumprod, 0, 200, 400, 600, 800) == pytest.approx(
        [0.99990, 0.65634704, 0.19357197, 0.02556749, 0.00150752], rel=5e-7, abs=5e-9
    )
    assert schedule.alphas_cumprod[999].item() == pytest.approx(4.036e-5, rel=1e-4)


def test_remaining_schedules_against_their_formulas():
    assert noise_schedule("binomial", 4).betas.tolist() == pytest.approx([1 / 5, 1 / 4, 1 / 3, 1 / 2])
    scaled = noise_schedule("linear_scaled", 3, noise_scale=0.1, noise_min=0.1, noise_max=0.3)
    assert scaled.betas.tolist() == pytest.approx([0.01, 0.02, 0.03])
    fixed = noise_schedule("linear_scaled", 3, noise_scale=0.1, noise_min=0.1, noise_max=0.3, beta_fixed=True)
    assert fixed.betas.tolist() == pytest.approx([1e-5, 0.02, 0.03])
    assert fixed.alphas_cumprod[1].item() == pytest.approx((1 - 1e-5) * 0.98, abs=1e-15)

    steps = 50  # s = 20: ends .002 and .4
    quad = [(math.sqrt(0.002) + (math.sqrt(0.4) - math.sqrt(0.002)) * i / 49) ** 2 for i in range(steps)]
    assert noise_schedule("quad", steps).betas.tolist() == pytest.approx(quad)
    sigmoid = [0.398 / (1 + math.exp(-(-6 + 12 * i / 49))) + 0.002 for i in range(steps)]
    assert noise_schedule("sigmoid", steps).betas.tolist() == pytest.approx(sigmoid)

    def abar(u):
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    raw = [1 - abar((i + 1) / 1000) / abar(i / 1000) for i in range(1000)]
    clipped = noise_schedule("cosine_clip", 1000).betas
    assert raw[0] < 1e-4
    assert raw[999] > 0.9999
    assert numbers(clipped, 0, 999) == [1e-4, 0.9999]
    assert clipped[500].item() == pytest.approx(raw[500])
    assert noise_schedule("cosine", 1000).betas[0].item() == pytest.approx(raw[0])


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 21, 100])
def test_every_schedule_is_sound_or_refused(name, steps):
    if name in ("linear", "pw_lin", "quad", "sigmoid") and steps <= 20:
        with pytest.raises(ConfigError, match="20 steps"):
            noise_schedule(name, steps)
        return
    schedule = noise_schedule(name, steps)
    assert schedule.steps == len(schedule.betas) == steps
    assert bool(((schedule.betas > 0) & (schedule.betas <= 1)).all())
    assert bool((schedule.alphas_cumprod.diff() < 0).all())
    assert torch.isfinite(schedule.log_variance_fixed_small).all()
    assert torch.isfinite(schedule.log_variance_fixed_large).all()
    assert numbers(schedule.posterior_mean_coef1, 0) == pytest.approx([1], abs=1e-8)
    assert numbers(schedule.posterior_mean_coef2, 0) == [0]


@pytest.mark.parametrize("steps", [1, 10, 19, 20])
def test_linear_needs_more_than_20_steps(steps):
    with pytest.raises(ConfigError) as error:
        noise_schedule("linear", steps)
    assert "linear" in error.value.problem
    assert f"beta[{steps - 1}]" in error.value.problem
    assert "more than 20" in (error.value.remedy or "")
    assert noise_schedule("linear", 21).betas[-1] < 1


@pytest.mark.parametrize("name", ["linear", "pw_lin", "quad", "sigmoid"])
def test_only_a_schedule_that_ends_in_noise_is_recommended(name):
    with pytest.raises(ConfigError) as error:
        noise_schedule(name, 20)
    recommended = [other for other in SCHEDULES if other in (error.value.remedy or "").replace(",", "").split()]
    assert recommended == ["cosine"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_that_does_not_end_in_noise_says_so(name):
    """A chain that starts from noise is right only if nothing is left of x_0 at the last step."""
    for steps in (*range(1, 41), 100, 1000):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                schedule = noise_schedule(name, steps)
            except ConfigError:
                continue
        left = schedule.alphas_cumprod[-1].item() ** 0.5
        rows_only = name in ("linear_var", "linear_scaled", "binomial")
        assert len(caught) == (left > 0.1 and not rows_only), (name, steps, left)
        for warning in caught:
            assert issubclass(warning.category, RediffuseWarning)
            said = str(warning.message)
            assert f"{name!r} with steps={steps} " in said
            assert f"{left:.2g} of the signal" in said
            assert "schedule cosine" in said
        if name == "cosine":
            assert left < 0.04


def test_trunc_lin_of_few_steps_warns():
    for steps in (2, 10, 20):
        with pytest.warns(RediffuseWarning, match=r"0\.[67]\d? of the signal is left"):
            noise_schedule("trunc_lin", steps)


def test_betas_out_of_range_name_schedule_and_step():
    with pytest.raises(ConfigError, match=r"'linear_scaled' with steps=3: beta\[1\] = 1.5"):
        noise_schedule("linear_scaled", 3, noise_scale=1.0, noise_min=0.5, noise_max=2.5)
    with pytest.raises(ConfigError, match="diffusion=false"):
        noise_schedule("linear_var", 5, noise_scale=0.0, beta_fixed=False)
    with pytest.raises(ConfigError, match=r"beta\[1\] = -"):
        noise_schedule("linear_var", 5, noise_min=0.02, noise_max=0.01)
    with pytest.raises(ConfigError, match=r"beta\[0\] = 1"):
        from_betas([1.0, 0.5])
    with pytest.raises(ConfigError, match=r"beta\[1\] = nan"):
        from_betas([0.1, float("nan")])
    with pytest.raises(ConfigError, match="at least one"):
        from_betas([])
    assert from_betas([0.5, 1.0]).alphas_cumprod.tolist() == [0.5, 0.0]


def test_unknown_names_and_parameters_suggest():
    with pytest.raises(ConfigError, match="Did you mean 'trunc_lin'"):
        noise_schedule("trunc-lim", 32)
    with pytest.raises(ConfigError, match="Did you mean 'noise_scale'"):
        noise_schedule("linear_var", 5, noise_scal=1.0)
    with pytest.raises(ConfigError, match="no parameters"):
        noise_schedule("cosine", 5, noise_scale=1.0)
    for steps in (0, -3, 2.5, True):
        with pytest.raises(ConfigError, match="whole number"):
            noise_schedule("cosine", steps)  # type: ignore[arg-type]


def test_log_variances():
    schedule = noise_schedule("trunc_lin", 32)
    small, large = schedule.log_variance("fixed_small").exp(), schedule.log_variance("fixed_large").exp()
    assert schedule.posterior_variance[0] == 0
    torch.testing.assert_close(small[1:], schedule.posterior_variance[1:])
    torch.testing.assert_close(large[1:], schedule.betas[1:])
    assert small[0].item() == large[0].item() == pytest.approx(schedule.posterior_variance[1].item())
    with pytest.raises(ConfigError, match="Did you mean 'fixed_small'"):
        schedule.log_variance("fixed_smal")  # type: ignore[arg-type]


def test_float32_copy_keeps_the_digits_that_float32_arithmetic_would_lose():
    schedule = noise_schedule("linear_var", **TOY)
    single = schedule.to(dtype=torch.float32)
    assert single.betas.dtype == single.snr.dtype == single.posterior_mean_coef1.dtype == torch.float32
    torch.testing.assert_close(single.posterior_mean_coef1.double(), schedule.posterior_mean_coef1, rtol=1e-6, atol=0)
    torch.testing.assert_close(single.snr.double(), schedule.snr, rtol=1e-6, atol=0)
    naive = 1 / (1 - single.alphas_cumprod.double())
    assert (naive / (1 / (1 - schedule.alphas_cumprod)) - 1).abs().max() > 1e-4
