"""Respaced schedules, a denoising trajectory by hand, and importance weights without bias."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.diffusion import ancestral, ddim, noise_schedule, respace, space_timesteps
from rediffuse.diffusion.timesteps import TIMESTEP_SAMPLERS, timestep_sampler

SETTLED = settings(derandomize=True, deadline=None, max_examples=60)


@st.composite
def shorter(draw: st.DrawFn) -> tuple[Any, list[int]]:
    """A schedule, and which of its timesteps are kept: evenly spaced, strided, or any."""
    name = draw(
        st.sampled_from(["linear", "cosine", "sqrt", "trunc_cos", "trunc_lin", "linear_var", "binomial", "sigmoid"])
    )
    steps = draw(st.integers(21, 90))
    kept = draw(
        st.one_of(
            st.integers(1, steps).map(lambda count: space_timesteps(steps, count)),
            st.integers(1, steps).map(lambda stride: space_timesteps(steps, f"ddim{-(-steps // stride)}")),
            st.sets(st.integers(0, steps - 1), min_size=1).map(sorted),
        )
    )
    return noise_schedule(name, steps), kept


@SETTLED
@given(st.integers(1, 200), st.data())
def test_evenly_spaced_ends(steps: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, steps))
    kept = space_timesteps(steps, count)
    assert kept[0] == 0
    assert len(kept) == count
    assert set(kept) <= set(range(steps))
    if count > 1:
        assert kept[-1] == steps - 1
        gaps = [b - a for a, b in itertools.pairwise(kept)]
        assert max(gaps) - min(gaps) <= 1 + (min(gaps) > 0)
        assert min(gaps) >= 1
        stride = (steps - 1) / (count - 1)
        assert all(abs(t - n * stride) <= 0.5 + 1e-6 for n, t in enumerate(kept))


@SETTLED
@given(shorter())
def test_the_signal_left_is_that_of_the_whole_schedule(case: tuple) -> None:
    schedule, kept = case
    short, numbers = respace(schedule, kept)
    assert numbers.tolist() == kept
    assert numbers.dtype == torch.int64
    assert torch.equal(short.alphas_cumprod, schedule.alphas_cumprod[kept])
    assert ((short.betas > 0) & (short.betas < 1)).all()
    left = 1.0
    for n, t in enumerate(kept):
        # The noise added since the previous kept step is that of all steps between.
        between = range(kept[n - 1] + 1 if n else 0, t + 1)
        product = math.prod(1 - float(schedule.betas[s]) for s in between)
        assert 1 - float(short.betas[n]) == pytest.approx(product, rel=1e-9)
        left *= 1 - float(short.betas[n])
        assert left == pytest.approx(float(schedule.alphas_cumprod[t]), rel=1e-9)


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """An x0_hat that depends on the state and on the original timestep."""
    return torch.tanh(0.7 * x + 0.1 * torch.cos(t.to(x.dtype))[:, None])


@SETTLED
@given(shorter(), st.booleans(), st.floats(-2, 2))
def test_a_trajectory_by_hand(case: tuple, strided: bool, start: float) -> None:
    """Deterministic sampling: the network gets original timesteps, the update has abar of the kept ones."""
    schedule, kept = case
    abar = [float(schedule.alphas_cumprod[t]) for t in kept]
    x = start
    for n in reversed(range(len(kept))):
        x0_hat = math.tanh(0.7 * x + 0.1 * math.cos(kept[n]))
        before = abar[n - 1] if n else 1.0
        if strided:  # Song et al. 2021, eq. 12 with sigma = 0
            eps = (x - math.sqrt(abar[n]) * x0_hat) / math.sqrt(1 - abar[n])
            x = math.sqrt(before) * x0_hat + math.sqrt(1 - before) * eps
        else:  # the mean of q(x_before | x_t, x_0): Ho et al. 2020, eq. 7
            alpha = abar[n] / before
            x = (math.sqrt(before) * (1 - alpha) * x0_hat + math.sqrt(alpha) * (1 - before) * x) / (1 - abar[n])
    begin = torch.full((1, 1), start, dtype=torch.float64)
    if strided:
        found = ddim(network, begin, schedule, kept)
    else:
        found = ancestral(network, begin, schedule, kept, variance=None)
    assert float(found) == pytest.approx(x, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", TIMESTEP_SAMPLERS)
@SETTLED
@given(st.integers(1, 12), st.integers(0, 3), st.data())
def test_weighted_losses_have_the_mean_of_uniform_ones(name: str, steps: int, rounds: int, data: st.DataObject) -> None:
    """The exact expectation over t, with the weights that `sample` returns."""
    sampler = timestep_sampler(name, steps, **({"history_per_term": 2} if name == "lossaware" else {}))
    loss = torch.tensor([data.draw(st.floats(0, 50)) for _ in range(steps)], dtype=torch.float64)
    for _ in range(rounds):
        sampler.update(torch.arange(steps), loss.float() * data.draw(st.floats(0, 2)))
    chances = sampler.probabilities()
    assert float(chances.sum()) == pytest.approx(1)
    assert bool((chances > 0).all())
    t, weight = sampler.sample(4000, torch.Generator().manual_seed(0))
    weights = torch.full((steps,), math.nan, dtype=torch.float64)
    weights[t] = weight.double()
    rare = weights.isnan()  # timesteps that were not drawn get the weight of the formula
    weights[rare] = 1 / (steps * chances[rare])
    assert float(weights[t[0]]) == pytest.approx(1 / (steps * float(chances[t[0]])), rel=1e-5)
    assert float((chances * weights * loss).sum()) == pytest.approx(float(loss.mean()), rel=1e-5, abs=1e-9)
