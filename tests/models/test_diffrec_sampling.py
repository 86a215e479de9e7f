"""DiffRec's inference from noised rows and with noise in its steps, and its schedules: beside loops by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data

import rediffuse as rd
from rediffuse.batching.sequences import pad_right
from rediffuse.data.histories import Histories
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError
from rediffuse.models.diffrec import DiffRec, DiffRecConfig, TDiffRec, row_schedule
from rediffuse.models.ldiffrec import LDiffRec
from rediffuse.testing import synthetic_interactions

ITEMS = 30


def build(kind=DiffRec, **options) -> DiffRec:
    torch.manual_seed(0)
    small = {"hidden_sizes": (8, 20), "time_size": 6, "noise_scale": 20.0, "noise_min": 0.01, "noise_max": 0.03}
    small |= {"latent_size": 12} if kind is LDiffRec else {}
    model = kind(kind.Config.build(None, small | options), ITEMS).eval()
    model.fit(training_data(some_rows(), ITEMS))
    model.prepare()
    return model


def some_rows(users: int = 12) -> Histories:
    rng = np.random.default_rng(1)
    return Histories.from_lists([rng.integers(ITEMS, size=rng.integers(1, 12)).tolist() for _ in range(users)])


def by_hand(model: DiffRec, x: torch.Tensor, rows: Histories, seed: int) -> torch.Tensor:
    """q_sample to T', then T steps of DDPM's posterior, one after the other."""
    config, schedule = model.config, model.schedule
    noise = RowNoise(row_keys(*pad_right(rows, int(rows.lengths.max()), ITEMS)), seed)
    beta = schedule.betas.tolist()
    abar = [math.prod(1 - b for b in beta[: t + 1]) for t in range(len(beta))]
    if config.noising_steps:
        last = abar[config.noising_steps - 1]
        x = math.sqrt(last) * x + math.sqrt(1 - last) * noise(x)
    for t in reversed(range(config.diffusion_steps)):
        output = model.denoiser(x, torch.full((len(x),), t))
        before = abar[t - 1] if t else 1.0
        x_0 = output if config.prediction == "x0" else (x - math.sqrt(1 - abar[t]) * output) / math.sqrt(abar[t])
        c1 = beta[t] * math.sqrt(before) / (1 - abar[t])
        c2 = (1 - before) * math.sqrt(1 - beta[t]) / (1 - abar[t])
        x = c1 * x_0 + c2 * x
        if t and config.sampling_noise:
            x = x + math.sqrt(beta[t] * (1 - before) / (1 - abar[t])) * noise(x)
    return x


OPTIONS = [
    {"noising_steps": 3},
    {"noising_steps": 5},
    {"noising_steps": 3, "normalize": True},
    {"noising_steps": 2, "prediction": "eps"},
    {"sampling_noise": True},
    {"noising_steps": 3, "sampling_noise": True},
    {"noising_steps": 4, "noise_schedule": "cosine", "beta_fixed": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", [DiffRec, TDiffRec, LDiffRec])
@torch.no_grad()
def test_the_chain_is_the_formula(kind, options):
    model, rows = build(kind, **options), some_rows()
    found = model.score(rows, seed=4)
    x = torch.from_numpy(model.rows(rows).toarray())
    if kind is LDiffRec:
        weight = model.encoder * model.within_clusters()
        x = torch.tanh(x @ weight + model.encoder_bias)[:, : model.config.latent_size]
    expected = by_hand(model, x, rows, 4)
    expected = model.decoder(expected) if kind is LDiffRec else expected
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert model.stochastic
    assert not torch.allclose(found, model.score(rows, seed=5), atol=1e-4)
    alone = torch.cat([model.score(rows.take(np.array([row])), seed=4) for row in range(len(rows))])
    torch.testing.assert_close(alone, found, atol=2e-4, rtol=1e-3)


def test_by_default_nothing_is_drawn():
    model = build()
    assert not model.stochastic
    assert torch.equal(model.score(some_rows(), seed=1), model.score(some_rows(), seed=2))


@pytest.mark.parametrize("steps_of_noise", [1, 3, 5])
@torch.no_grad()
def test_the_noise_of_the_start_has_the_variance_of_its_step(steps_of_noise):
    model = build(noising_steps=steps_of_noise)
    z = torch.zeros(20_000, 3)
    start = model.noised_start(z + 2, torch.randn_like(z))
    abar = model.schedule.alphas_cumprod[steps_of_noise - 1].item()
    assert start.mean().item() == pytest.approx(2 * abar**0.5, abs=0.02)
    assert start.var().item() == pytest.approx(1 - abar, rel=0.03)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"noising_steps": 6}, "noising_steps=6 is more than diffusion_steps=5"),
        ({"noising_steps": -1}, "noising_steps"),
        ({"diffusion": False, "noising_steps": 2}, "diffusion=false has no noise"),
        ({"diffusion": False, "sampling_noise": True}, "diffusion=false has no noise"),
        ({"noise_schedule": "linear"}, "noise_schedule"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        DiffRecConfig.build(None, options)


# --- schedules ---------------------------------------------------------------------------------------------------


def numbers(**options) -> list[float]:
    return row_schedule(DiffRecConfig.build(None, options)).betas.tolist()


def test_schedules_are_those_of_the_release():
    size = {"diffusion_steps": 10, "noise_scale": 0.1, "noise_min": 0.001, "noise_max": 0.02}
    even = np.linspace(1e-4, 2e-3, 10)
    assert numbers(**size, noise_schedule="linear_scaled", beta_fixed=False) == pytest.approx(even.tolist())
    assert numbers(**size, noise_schedule="linear_scaled") == pytest.approx([1e-5, *even[1:].tolist()])
    abar = 1 - even
    var = [even[0], *(1 - abar[1:] / abar[:-1])]
    assert numbers(**size, beta_fixed=False) == pytest.approx(var)
    assert numbers(**size) == pytest.approx([1e-5, *var[1:]])
    binomial = [1 / (10 - t + 1) for t in range(10)]
    assert numbers(**size, noise_schedule="binomial", beta_fixed=False) == pytest.approx(binomial)
    assert numbers(**size, noise_schedule="binomial") == pytest.approx([1e-5, *binomial[1:]])
    f = [math.cos((t / 10 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(11)]
    cosine = [min(1 - f[t + 1] / f[t], 0.999) for t in range(10)]
    assert numbers(**size, noise_schedule="cosine", beta_fixed=False) == pytest.approx(cosine)
    assert numbers(**size, noise_schedule="cosine") == pytest.approx([1e-5, *cosine[1:]])


@pytest.mark.parametrize("name", ["linear_scaled", "cosine", "binomial"])
@pytest.mark.parametrize("kind", [DiffRec, LDiffRec])
def test_it_trains_with_every_schedule(kind, name):
    model = build(kind, noise_schedule=name)
    losses = steps(model.train(), training_data(some_rows(60), ITEMS), 8, 0.01)
    assert np.isfinite(losses).all()
    model.prepare()
    assert model.score(some_rows()).isfinite().all()


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_with_noise_recommends_by_its_seed(tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions())
    options = {"epochs": 2, "hidden_sizes": [8], "noising_steps": 5, "noise_scale": 20.0, "noise_max": 0.03}
    run = rd.train("diffrec", split, tmp_path / "run", config=options)
    recommender = rd.Recommender.load(run.path)
    users = ["u0", "u1", "u2"]
    first, again, other = (recommender.recommend(users=users, k=10, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    averaged = recommender.recommend(users=users, k=5, samples=3, seed=1)
    assert (averaged["uncertainty"] > 0).any()
