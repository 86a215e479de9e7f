"""A run says how large what it noised is beside the noise, and warns where the noise hides it."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from tests.fitting import training_data

import rediffuse as rd
from rediffuse.errors import RediffuseWarning
from rediffuse.models import model_class
from rediffuse.models.sampling import Sampling
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions

TINY = {"embedding_size": 16, "blocks": 1, "epochs": 1, "batch_size": 64, "precision": "fp32"}
SHORT = {"classifier": TINY, "backbone_options": {"embedding_size": 16}, "generator_epochs": 1, "n": 3, "epochs": 1}


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions(knowledge=True))


def said(caught) -> list[str]:
    return [str(warning.message) for warning in caught if issubclass(warning.category, RediffuseWarning)]


def trained(model, split, folder, **options):
    """The run, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return rd.train(model, split, folder, config=options, seed=1), said(caught)


@pytest.mark.parametrize(("std", "hidden"), [(0.02, True), (1.0, False)])
def test_of_item_vectors(split, tmp_path, std, hidden):
    options = TINY | {"normalize": False, "noise_schedule": "trunc_lin", "embedding_std": std}
    run, messages = trained("diffurec", split, tmp_path / "run", **options)
    contents = read_run(run.path)
    model = contents.model
    (found,) = json.loads((run.path / "config.json").read_text())["noise"]
    table = model.item_embedding.weight[: model.num_items].detach().double()
    assert found["what"] == "item vectors"
    assert found["rms"] == pytest.approx(table.square().mean().sqrt().item(), rel=1e-5)
    abar = model.schedule.alphas_cumprod
    assert found["snr"] == [
        pytest.approx((abar[t] / (1 - abar[t])).item() * table.square().mean().item(), rel=1e-5) for t in (0, 16, 31)
    ]
    rows = [torch.from_numpy(split.training_view().train.row(user).astype(np.int64)) for user in range(8)]
    with torch.no_grad():
        alone = [model.eval().represent(row[None], torch.tensor([len(row)]), Sampling()) for row in rows]
    estimate = torch.cat(alone)
    assert found["estimate_rms"] == pytest.approx(estimate.square().mean().sqrt().item(), rel=0.2)
    assert any("hides the item vectors at every timestep" in message for message in messages) == hidden
    card = (run.path / "README.md").read_text()
    assert f"- Noised: item vectors, root mean square {found['rms']:.4g} (" in card
    assert f"{found['snr'][1]:.4g} at t = 16" in card


def test_of_rows(split, tmp_path):
    options = {"epochs": 2, "hidden_sizes": [8], "weighting": "order"}
    run, messages = trained("diffrec", split, tmp_path / "run", **options)
    (found,) = run.config["noise"]
    view, total = split.training_view(), 0.0
    for user in range(view.num_users):
        weights = np.linspace(0.1, 1, len(view.train.row(user)))
        total += sum(weight**2 for weight in dict(zip(view.train.row(user).tolist(), weights, strict=True)).values())
    assert found["rms"] ** 2 == pytest.approx(total / (view.num_users * view.num_items), rel=1e-5)
    assert not found["starts_from_noise"]
    assert not messages
    much = {"noise_scale": 99.0, "noise_min": 0.009, "beta_fixed": False}
    run, (message,) = trained("diffrec", split, tmp_path / "hidden", **options, **much)
    assert run.config["noise"][0]["snr"][0] < 1
    assert message.startswith("The noise hides the rows at every timestep")


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        ("ldiffrec", {"epochs": 1, "latent_size": 8}, ["latent vectors"]),
        ("diffkg", {"epochs": 1, "embedding_size": 8, "hidden_size": 8}, ["rows of the graph"]),
        ("diffkg", {"epochs": 1, "embedding_size": 8, "pruning": "none"}, []),
        ("pdrec", {"backbone": "diffurec", "backbone_options": {"embedding_size": 16}, "epochs": 1}, None),
        ("diffuasr", SHORT, ["scaled item vectors"]),
        ("diffuasr", SHORT | {"backbone": "diffurec"}, ["scaled item vectors", "item vectors"]),
        ("diffurec", TINY | {"diffusion": False}, []),
        ("diffrec", {"epochs": 1, "diffusion": False}, []),
        ("sasrec", TINY, []),
        ("itemknn", {}, []),
    ],
)
def test_what_each_model_noises(split, tmp_path, model, options, expected):
    if model == "pdrec":
        options, expected = options | {"diffusion": {"epochs": 1, "hidden_sizes": [8]}}, ["rows", "item vectors"]
    run, _ = trained(model, split, tmp_path / "run", **options)
    assert [levels["what"] for levels in run.config["noise"]] == expected
    for levels in run.config["noise"]:
        assert levels["snr"][0] > levels["snr"][1] > levels["snr"][2] > 0
        assert levels["starts_from_noise"] == (levels["what"] in ("item vectors", "scaled item vectors"))
    scaled = [levels["rms"] for levels in run.config["noise"] if levels["what"] == "scaled item vectors"]
    assert scaled == pytest.approx([1.0] * len(scaled))


def test_a_refitted_run_has_levels_of_its_own(split, tmp_path):
    run, _ = trained("diffurec", split, tmp_path / "run", **TINY, embedding_std=1.0, normalize=False)
    refitted = rd.refit(run, split.dataset, tmp_path / "again")
    (first,), (second,) = run.config["noise"], refitted.config["noise"]
    assert second["rms"] == pytest.approx(first["rms"], rel=0.3)
    assert second["rms"] != first["rms"]


def test_measuring_changes_no_random_number(split):
    kind, view = model_class("diffurec"), split.training_view()
    model = kind(kind.Config.build(None, TINY), view.num_items, view.num_users).eval()
    data = training_data(view.train, view.num_items)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = model.noise_levels(data)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.noise_levels(data) == first
