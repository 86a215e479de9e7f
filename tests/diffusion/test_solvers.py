import threading

import pytest
import torch

from rediffuse.diffusion import (
    PREDICTIONS,
    SOLVERS,
    ancestral,
    ddim,
    dpmpp_2m,
    from_betas,
    noise_schedule,
    one_step,
    posterior_mean,
    predict_eps,
    prediction_target,
    q_sample,
    respace,
    solver,
    space_timesteps,
)
from rediffuse.errors import ConfigError

T32 = noise_schedule("trunc_lin", 32)
T1000 = noise_schedule("linear", 1000)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def oracle(schedule, x0, prediction):
    """A network that knows the true x_0 and returns it as x0, eps or v."""

    def network(x_t, t):
        return prediction_target(schedule, x0, predict_eps(schedule, x0, x_t, t), t, prediction)

    return network


def smooth(x_t, t):
    """A network that is wrong, but depends on all its inputs."""
    return torch.tanh(0.8 * x_t + 0.1 * torch.cos(t.to(x_t.dtype) / 50).reshape(-1, *[1] * (x_t.ndim - 1)))


def test_ddim_steps_by_hand():
    """From x = 1 with eps = .5: sqrt(abar_n) x_0 + .5 sqrt(1 - abar_n), x_0 = (1 - .5 sqrt(1 - abar)) / sqrt(abar)."""
    visited = []

    def half(x, t):
        return torch.full_like(x, 0.5)

    x = torch.ones(2, 3, dtype=torch.float64)
    kept = space_timesteps(1000, "ddim5")
    ddim(
        half,
        x,
        T1000,
        kept,
        prediction="eps",
        callback=lambda step, t, x_t, x0: visited.append((step, t, x_t)),
    )
    assert [(step, t) for step, t, _ in visited] == [(0, 800), (1, 600), (2, 400), (3, 200), (4, 0)]
    first, later = T1000.alphas_cumprod[[800, 600]].tolist()
    x0 = (1 - 0.5 * (1 - first) ** 0.5) / first**0.5
    assert visited[1][2].unique().tolist() == pytest.approx([later**0.5 * x0 + 0.5 * (1 - later) ** 0.5], rel=1e-12)
    last = ddim(half, x, T1000, [0], prediction="eps")  # abar_0 = 1 - 1e-4
    assert last.unique().tolist() == pytest.approx([(1 - 0.5 * 0.01) / 0.9999**0.5], rel=1e-12)


# --- the oracle ---


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("schedule", "kept"),
    [
        (noise_schedule("trunc_lin", 1), None),
        (noise_schedule("trunc_lin", 2), None),
        (T32, None),
        (T32, [31]),
        (T32, [5, 9, 31]),
        (T32, space_timesteps(32, "ddim8")),
        (noise_schedule("linear_var", 5), None),
        (T1000, space_timesteps(1000, "3,2")),
    ],
)
def test_with_an_oracle_every_solver_ends_in_x0(name, prediction, schedule, kept):
    x0, x = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    network = oracle(schedule, x0, prediction)
    result = SOLVERS[name](network, x, schedule, kept, prediction=prediction, generator=generator())
    torch.testing.assert_close(result, x0, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("function", [ddim, dpmpp_2m])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_with_an_oracle_deterministic_solvers_stay_on_the_line_between_x0_and_the_noise(function, prediction):
    x0, noise = normal(3, 4), normal(3, 4, seed=1)
    kept = [0, 4, 9, 20, 31]
    seen = 0

    def on_the_line(step, t, x_t, x0_hat):
        nonlocal seen
        seen += 1
        at = torch.full((3,), t)
        torch.testing.assert_close(x_t, q_sample(T32, x0, at, noise), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(x0_hat, x0, rtol=1e-9, atol=1e-9)

    start = q_sample(T32, x0, torch.full((3,), 31), noise)
    function(oracle(T32, x0, prediction), start, T32, kept, prediction=prediction, callback=on_the_line)
    assert seen == 5


@pytest.mark.parametrize(("function", "options"), [(ancestral, {}), (ddim, {"eta": 1.0}), (ddim, {"eta": 0.5})])
@pytest.mark.parametrize("kept", [None, [0, 6, 15, 31]])
def test_with_an_oracle_stochastic_solvers_pass_through_the_forward_marginals(function, options, kept):
    n = 60_000
    x0 = torch.full((n, 1), 1.5, dtype=torch.float64)

    def moments(step, t, x_t, x0_hat):
        abar = T32.alphas_cumprod[t].item()
        assert x_t.mean().item() == pytest.approx(1.5 * abar**0.5, abs=0.02)
        assert x_t.var().item() == pytest.approx(1 - abar, rel=0.03)

    start = q_sample(T32, x0, torch.full((n,), 31), normal(n, 1, seed=1))
    function(oracle(T32, x0, "x0"), start, T32, kept, generator=generator(), callback=moments, **options)


# --- each solver against its formula ---


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", None])
def test_ancestral_step_by_step(variance):
    x = start = normal(2, 3)
    draws = generator(7)
    for t in reversed(range(32)):
        at = torch.full((2,), t)
        x = posterior_mean(T32, smooth(x, at), x, at)
        if t and variance == "fixed_small":
            x = x + T32.posterior_variance[t].sqrt() * torch.randn(2, 3, generator=draws, dtype=x.dtype)
        if t and variance == "fixed_large":
            x = x + T32.betas[t].sqrt() * torch.randn(2, 3, generator=draws, dtype=x.dtype)
    result = ancestral(smooth, start, T32, generator=generator(7), variance=variance)
    torch.testing.assert_close(result, x, rtol=1e-10, atol=1e-10)


def test_ancestral_ends_in_the_last_x0_exactly():
    last = []
    result = ancestral(
        smooth, normal(2, 3), T32, generator=generator(), callback=lambda step, t, x_t, x0: last.append(x0)
    )
    assert torch.equal(result, last[-1])
    assert len(last) == 32


@pytest.mark.parametrize("kept", [None, [1, 4, 5, 29]])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_with_eta_1_is_ancestral(kept, prediction):
    x = normal(2, 3)
    same = {"prediction": prediction}
    a = ancestral(smooth, x, T32, kept, generator=generator(3), **same)
    b = ddim(smooth, x, T32, kept, generator=generator(3), eta=1.0, **same)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_ddim_with_eta_0_draws_nothing():
    def refuses(like):
        raise AssertionError("noise was drawn")

    x = normal(2, 3)
    assert torch.equal(ddim(smooth, x, T32, generator=refuses), ddim(smooth, x, T32))
    with pytest.raises(AssertionError, match="drawn"):
        ddim(smooth, x, T32, generator=refuses, eta=0.1)


def test_order_of_accuracy_on_the_exact_flow():
    """For x_0 ~ N(0, s^2) the probability flow keeps x_t / std(x_t). DDIM is of order 1, 2M of 2."""
    spread, first, last = 2.0, 20, 980
    abar = T1000.alphas_cumprod
    std = (abar * spread**2 + 1 - abar).sqrt()

    def posterior_mean_of_x0(x_t, t):
        gain = abar[t].sqrt() * spread**2 / std[t] ** 2
        return gain[:, None] * x_t

    def error(function, steps):
        half_log_snr = T1000.snr.log() / 2
        aims = torch.linspace(half_log_snr[first], half_log_snr[last], steps + 1, dtype=torch.float64)
        kept = sorted({int((half_log_snr - aim).abs().argmin()) for aim in aims})
        assert len(kept) == steps + 1
        states = {}
        x = torch.ones(1, 1, dtype=torch.float64)
        function(
            posterior_mean_of_x0,
            x,
            T1000,
            kept,
            callback=lambda step, t, x_t, x0: states.update({t: x_t.item()}),
        )
        return abs(states[first] - (std[first] / std[last]).item())

    assert error(ddim, 48) / error(ddim, 96) == pytest.approx(2, abs=0.1)
    assert error(dpmpp_2m, 48) / error(dpmpp_2m, 96) == pytest.approx(4, abs=0.2)
    assert error(dpmpp_2m, 96) < error(ddim, 96) / 30


def test_dpmpp_2m_step_by_step():
    """Algorithm 2 of Lu et al. 2022, as printed, in lambda and h."""
    kept = [3, 11, 20, 31]
    abar = T32.alphas_cumprod[kept]
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    lam = (alpha / sigma).log()
    x, old = normal(2, 3), None
    start = x
    for i in (3, 2, 1):
        x0 = smooth(x, torch.full((2,), kept[i]))
        h = lam[i - 1] - lam[i]
        d = x0
        if old is not None:
            r = (lam[i] - lam[i + 1]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * old
        x = sigma[i - 1] / sigma[i] * x - alpha[i - 1] * ((-h).exp() - 1) * d
        old = x0
    expected = smooth(x, torch.full((2,), 3))
    torch.testing.assert_close(dpmpp_2m(smooth, start, T32, kept), expected, rtol=1e-10, atol=1e-10)


def test_one_step_is_the_networks_x0_at_the_last_timestep():
    x = normal(2, 3)
    seen = []
    result = one_step(smooth, x, T32, callback=lambda *call: seen.append(call))
    assert torch.equal(result, smooth(x, torch.full((2,), 31)))
    assert torch.equal(one_step(smooth, x, T32, [2, 17]), smooth(x, torch.full((2,), 17)))
    assert len(seen) == 1
    assert seen[0][:2] == (0, 31)
    # From a prediction of the noise, x_0 is computed.
    eps, abar = smooth(x, torch.full((2,), 31)), T32.alphas_cumprod[31]
    expected = (x - (1 - abar).sqrt() * eps) / abar.sqrt()
    torch.testing.assert_close(one_step(smooth, x, T32, prediction="eps"), expected)


# --- invariances ---

ALL = [
    (ancestral, {}),
    (ancestral, {"variance": "fixed_large"}),
    (ddim, {}),
    (ddim, {"eta": 0.7}),
    (dpmpp_2m, {}),
    (one_step, {}),
]


@pytest.mark.parametrize(("function", "options"), ALL)
def test_visiting_all_timesteps_is_the_default(function, options):
    x = normal(2, 3)
    a = function(smooth, x, T32, generator=generator(), **options)
    b = function(smooth, x, T32, list(range(32)), generator=generator(), **options)
    assert torch.equal(a, b)


@pytest.mark.parametrize(("function", "options"), ALL)
def test_the_network_gets_original_timesteps(function, options):
    seen = []

    def network(x_t, t):
        assert t.shape == (3,)
        assert t.dtype == torch.int64
        seen.append(t.unique().item())
        return x_t

    function(network, normal(3, 2), T32, [4, 9, 30], generator=generator(), **options)
    assert seen == ([30] if function is one_step else [30, 9, 4])


@pytest.mark.parametrize(("function", "options"), ALL)
def test_a_respaced_schedule_gives_the_same_as_a_list_of_timesteps(function, options):
    kept = [0, 7, 19, 31]
    short, numbers = respace(T32, kept)
    x = normal(2, 3)
    a = function(smooth, x, T32, kept, generator=generator(), **options)
    b = function(lambda x_t, t: smooth(x_t, numbers[t]), x, short, generator=generator(), **options)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("function", "options"), ALL)
def test_rows_do_not_see_each_other(function, options):
    """With noise that belongs to the row, order and size of the batch do not matter."""
    keys = torch.arange(5)

    def by_row(keys):
        sources = [generator(int(key)) for key in keys]
        return lambda like: torch.stack([torch.randn(3, generator=s, dtype=like.dtype) for s in sources])

    x = normal(5, 3)
    whole = function(smooth, x, T32, generator=by_row(keys), **options)
    order = torch.tensor([3, 0, 4, 2, 1])
    permuted = function(smooth, x[order], T32, generator=by_row(keys[order]), **options)
    torch.testing.assert_close(permuted, whole[order], rtol=1e-12, atol=1e-12)
    alone = function(smooth, x[2:3], T32, generator=by_row(keys[2:3]), **options)
    torch.testing.assert_close(alone, whole[2:3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("function", "options"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_shape_dtype_and_start_are_kept(function, options, dtype):
    x = normal(2, 3, 4, dtype=dtype)
    before = x.clone()
    # Under autocast, a network returns another type than that of its input.
    result = function(lambda x_t, t: smooth(x_t, t).to(torch.bfloat16), x, T32, generator=generator(), **options)
    assert result.shape == x.shape
    assert result.dtype == dtype
    assert torch.equal(x, before)
    assert not result.requires_grad


def test_float32_agrees_with_float64():
    x = normal(4, 8)
    for function in (ddim, dpmpp_2m):
        double = function(smooth, x, T32)
        single = function(smooth, x.float(), T32)
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_seeded_noise_and_the_global_generator():
    x = normal(2, 3)
    a, b, c = (ancestral(smooth, x, T32, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    torch.manual_seed(5)
    d = ancestral(smooth, x, T32)
    torch.manual_seed(5)
    assert torch.equal(d, ancestral(smooth, x, T32))


def test_threads_may_share_everything():
    x = normal(4, 8)
    expected = ancestral(smooth, x, T32, generator=generator(1))
    results = [None] * 4

    def work(i):
        results[i] = ancestral(smooth, x, T32, generator=generator(1))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(result, expected) for result in results)


# --- a schedule that ends in nothing but noise ---


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_start_without_signal(name, prediction):
    schedule = from_betas([0.2, 0.5, 0.6, 1.0])
    x0, x = normal(3, 4), normal(3, 4, seed=1)
    result = SOLVERS[name](oracle(schedule, x0, prediction), x, schedule, prediction=prediction, generator=generator())
    torch.testing.assert_close(result, x0, rtol=1e-10, atol=1e-10)
    with pytest.raises(ConfigError, match="t=3: a network that predicts noise cannot start there"):
        SOLVERS[name](smooth, x, schedule, prediction="eps")
    assert torch.isfinite(SOLVERS[name](smooth, x, schedule, [0, 1, 2], prediction="eps")).all()


# --- errors ---


def test_errors():
    x = normal(1, 2)
    assert solver("DPMPP-2m") is dpmpp_2m
    with pytest.raises(ConfigError, match="Did you mean 'ancestral'"):
        solver("ancestal")
    for name in SOLVERS:
        with pytest.raises(ConfigError, match="Unknown prediction 'x_0'"):
            SOLVERS[name](smooth, x, T32, prediction="x_0")  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="not ascending"):
            SOLVERS[name](smooth, x, T32, [3, 1])
        with pytest.raises(ConfigError, match="do not lie"):
            SOLVERS[name](smooth, x, T32, [3, 32])
    with pytest.raises(ConfigError, match=r"eta is 1\.5"):
        ddim(smooth, x, T32, eta=1.5)
    with pytest.raises(ConfigError, match="Unknown variance"):
        ancestral(smooth, x, T32, variance="large")  # type: ignore[arg-type]
