"""PDRec: its loss beside the formula, its phases, and the runs it can start from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from tests.dying import dies
from tests.fitting import steps, training_data
from torch.nn import functional as F

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.data.split import Split
from rediffuse.errors import ConfigError, RunError, TrainingError
from rediffuse.models.pdrec import PDRec, open_ended
from rediffuse.models.sampling import Sampling
from rediffuse.models.signals import derive_signals
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions

ITEMS = 20
TINY = {
    **{"epochs": 3, "batch_size": 64, "patience": 2, "precision": "fp32", "candidates": 5, "liked": 2},
    "diffusion": {"epochs": 4, "hidden_sizes": [16], "validate_every": 2, "batch_size": 32, "learning_rate": 0.01},
    "backbone_options": {"embedding_size": 16, "dropout": 0.0},
}


def tiny(**options):
    return TINY | options


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- the loss ---------------------------------------------------------------------------------------------------


def ring(users: int = 40, length: int = 6) -> Histories:
    starts = np.random.default_rng(0).integers(ITEMS, size=users)
    return Histories.from_lists([[(int(s) + step) % ITEMS for step in range(length)] for s in starts])


def build(backbone: str = "sasrec", **options) -> PDRec:
    torch.manual_seed(0)
    own = {"embedding_size": 16, "dropout": 0.0, **({"blocks": 1} if backbone != "gru4rec" else {})}
    own |= {"repeat_bias": False} | ({"embedding_dropout": 0.0} if backbone == "diffurec" else {})
    config = PDRec.Config.build(None, tiny(backbone=backbone, backbone_options=own, precision="fp32") | options)
    return PDRec(config, ITEMS)


def begun(model: PDRec, rows: Histories):
    """The model in its second phase, and its batches."""
    data = training_data(rows, ITEMS)
    model.fit(data)
    model.begin_phase("backbone", data)
    return model.batches(data, np.random.default_rng(0))


def test_histories_with_open_ends():
    found = open_ended(Histories.from_lists([[1, 2], [], [3]]), ITEMS)
    assert [found.row(user).tolist() for user in range(3)] == [[1, 2, ITEMS], [], [3, ITEMS]]


@pytest.mark.parametrize(
    "switches", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_the_loss_is_the_papers(switches):
    """Beside loops over users, interactions and items, from the states that the backbone alone gives."""
    hbr, dpa, nns = switches
    model = build(hbr=hbr, dpa=dpa, nns=nns, positive_weight=0.3).eval()
    rows = Histories.from_lists([[1, 2, 3, 4], [5], [7, 7, 8], []])
    batches = begun(model, rows)
    assert len(batches) == 1
    batch = batches.get(0)
    with torch.no_grad():
        found = model.loss(batch).item()
        table = F.normalize(model.backbone.catalogue(), dim=1) / model.backbone.config.temperature
        positive, negative, liked = [], [], []
        open_rows = open_ended(rows, ITEMS)
        for user in (0, 1, 2):
            items = torch.from_numpy(rows.row(user).astype(np.int64))
            for end in range(1, len(items) + 1):
                state = model.backbone.represent(items[None, :end], torch.tensor([end]), Sampling())[0]
                logits = table @ F.normalize(state, dim=0)
                interaction = int((open_rows if dpa else rows).offsets[user]) + end
                if end < len(items):
                    place = int(rows.offsets[user]) + end
                    weight = model.signals.weights[place] if hbr else 1.0
                    positive.append(float(weight) * F.softplus(-logits[items[end]]).item())
                    negatives = model.negatives[interaction].tolist()
                    assert not set(negatives) & set(items.tolist())
                    assert len(negatives) == 1 + nns
                    negative.append(np.mean([F.softplus(logits[n]).item() for n in negatives]))
                elif dpa:
                    candidates = model.signals.positives[user]
                    best = sorted(candidates[candidates >= 0].tolist(), key=lambda i: -logits[i].item())[:2]
                    liked += [F.softplus(-logits[i]).item() for i in best]
    expected = np.mean(positive) + np.mean(negative) + (0.3 * np.mean(liked) if dpa else 0)
    assert found == pytest.approx(expected, rel=1e-4)


def test_without_signals_and_scale_it_is_the_plain_backbone():
    model = build(hbr=False, dpa=False, nns=False).eval()
    assert model.phases == ("backbone",)
    assert model.diffusion is None
    batches = begun(model, ring())
    batch = batches.get(0)
    known = batch.targets < ITEMS
    assert known.all()  # no history has an open end
    torch.manual_seed(0)
    hidden = model.backbone.encode(batch).vectors
    table = model.backbone.metric_space(model.backbone.catalogue())
    hidden = model.backbone.metric_space(hidden[known])
    positive = (hidden * table[batch.targets[known]]).sum(1)
    negative = (hidden * table[model.negatives[batch.interactions[known], 0]]).sum(1)
    plain = F.binary_cross_entropy_with_logits(positive, torch.ones(len(positive)))
    plain += F.binary_cross_entropy_with_logits(negative, torch.zeros(len(negative)))
    assert model.loss(batch).item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.parametrize("loss", ["bce", "softmax"])
@pytest.mark.parametrize(
    "backbone", ["sasrec", "gru4rec", "diffurec", pytest.param("bert4rec", marks=pytest.mark.slow)]
)
def test_every_backbone_learns_a_ring(backbone, loss):
    model, rows = build(backbone, loss=loss, nns=loss == "bce"), ring(120)
    begun(model, rows)
    data = training_data(rows, ITEMS)
    epochs = {"bce": 150, "softmax": 80}[loss] if backbone == "bert4rec" else 30
    steps(model, data, epochs, learning_rate=0.01)
    rows = Histories.from_lists([[(s + step) % ITEMS for step in range(3 + s % 3)] for s in range(ITEMS)])
    expected = (torch.arange(ITEMS) + torch.arange(ITEMS) % 3 + 3) % ITEMS
    scores = model.score(rows).clone()
    scores[rows.owners, rows.items.astype(np.int64)] = -torch.inf  # negatives are never of the history
    best = scores.topk(3, dim=1).indices
    assert (best == expected[:, None]).any(1).float().mean() > 0.8


@pytest.mark.parametrize("loss", ["bce", "softmax"])
def test_users_with_one_interaction_each_have_the_loss_of_their_open_ends_only(loss):
    model = build(loss=loss, nns=loss == "bce")
    found = model.loss(begun(model, Histories.from_lists([[1], [2], [3]])).get(0))
    found.backward()
    assert found.item() > 0
    assert model.backbone.item_embedding.weight.grad.isfinite().all()


def test_the_open_end_is_never_an_input():
    """BERT4Rec reads both sides; an unknown item can only be masked."""
    model = build("bert4rec").eval()
    batch = begun(model, ring(5)).get(0)
    torch.manual_seed(0)
    masked = model.backbone.training_batch(batch)
    ends = masked.targets == ITEMS
    assert 0 < ends.sum() < 5  # the other histories end with a known item
    assert (masked.positions[ends] == masked.lengths[masked.rows[ends]] - 1).all()


def noisy(form: str, **options) -> PDRec:
    """A PDRec with DiffuRec, whose tokens show what is noised."""
    torch.manual_seed(0)
    own = {"embedding_size": 16, "blocks": 1, "dropout": 0.0, "embedding_dropout": 0.0, "repeat_bias": False}
    own |= {"form": form, "lambda_uncertainty": 0.5} | options
    return PDRec(PDRec.Config.build(None, tiny(backbone="diffurec", backbone_options=own)), ITEMS)


@pytest.mark.parametrize("form", ["causal", "prefix"])
def test_where_no_item_follows_there_is_noise_alone_at_the_last_timestep(form, monkeypatch):
    """As in inference, which starts there. The vector of the padding is no item, and is not noised."""
    model = noisy(form, normalize=False)
    batch = begun(model, ring(50, 3)).get(0)
    ends = batch.targets == ITEMS
    assert 0 < int(ends.sum()) < len(ends)
    torch.nn.init.constant_(model.backbone.item_embedding.weight, 1e3)
    seen = {}

    def condition(z, x_t, t, noise, earlier):
        seen.update(x_t=x_t, t=t)
        return z

    monkeypatch.setattr(model.backbone.approximator, "condition", condition)
    encoded = model.backbone.encode(batch)
    at = (batch.rows, batch.positions) if form == "causal" else slice(None)
    x_t, t = seen["x_t"][at].detach(), seen["t"][at]
    last = model.backbone.config.diffusion_steps - 1
    assert (t[ends] == last).all()
    assert torch.equal(t, encoded.timesteps)
    assert len(t[~ends].unique()) > 10
    draws = x_t[ends].numel()
    assert abs(x_t[ends].mean().item()) < 4 / draws**0.5
    assert x_t[ends].square().mean().item() == pytest.approx(1, abs=4 * (2 / draws) ** 0.5)
    signal = model.backbone.schedule.sqrt_alphas_cumprod[t[~ends]] * 1e3
    assert (x_t[~ends] - signal[:, None]).abs().max().item() < 6


@pytest.mark.parametrize("form", ["causal", "prefix"])
def test_the_vector_of_the_padding_changes_no_loss_and_is_not_trained(form):
    model = noisy(form)
    batch, losses = begun(model, ring(20, 3)).get(0), []
    for value in (0.0, 1e3):
        with torch.no_grad():
            model.backbone.item_embedding.weight[ITEMS] = value
        torch.manual_seed(2)
        loss = model.loss(batch)
        loss.backward()
        losses.append(loss.item())
        assert (model.backbone.item_embedding.weight.grad[ITEMS] == 0).all()
    assert losses[0] == losses[1]


def test_the_timestep_sampler_learns_from_drawn_timesteps_only():
    model = noisy("causal", timestep_sampler="lossaware", diffusion_steps=32)
    batch = begun(model, ring(4, 3)).get(0)
    known = int((batch.targets < ITEMS).sum())
    assert known < len(batch.targets)
    model.loss(batch)
    assert int(model.backbone.timesteps.counts.sum()) == known


# --- fidelity and presets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["corrected", "released"])
def test_released_liked_items_may_be_those_of_the_history(fidelity):
    model, rows = build(fidelity=fidelity, candidates=ITEMS), ring()
    begun(model, rows)
    with torch.no_grad():
        ranking = model.diffusion.score(rows).argsort(dim=1, descending=True, stable=True)
    for user in range(len(rows)):
        own = set(rows.row(user).tolist())
        expected = [item for item in ranking[user].tolist() if fidelity == "released" or item not in own]
        assert [item for item in model.signals.positives[user].tolist() if item >= 0] == expected


def test_fidelity_is_that_of_the_diffusion_model_unless_it_has_its_own():
    def of_diffusion(preset=None, **options):
        return PDRec.Config.build(preset, options).diffusion_config().fidelity

    assert of_diffusion() == "corrected"
    assert of_diffusion(fidelity="released") == of_diffusion("released") == "released"
    assert of_diffusion(fidelity="released", diffusion={"fidelity": "corrected"}) == "corrected"


def test_presets_have_the_names_of_all_models_and_of_the_papers_data_sets():
    presets = PDRec.Config.presets
    assert set(presets) == {"paper", "released", "paper:toys", "paper:douban-book"}
    assert [name for name in presets if PDRec.Config.build(name).fidelity == "released"] == ["released"]
    assert PDRec.Config.build("paper:toys").diffusion_config().hidden_sizes == (1000,)


# --- phases, runs and files -------------------------------------------------------------------------------------


def test_the_signals_are_saved_and_are_those_of_the_first_phase(split, tmp_path):
    run = rd.train("pdrec", split, tmp_path / "run", config=tiny(), seed=1)
    contents, view = read_run(run.path), split.training_view()
    options = contents.model.config
    expected = derive_signals(
        contents.model.diffusion.score,
        view.train,
        view.num_items,
        band=(options.band_from, options.band_to),
        candidates=options.candidates,
    ).to_frame(view.train, split.dataset.user_ids, split.dataset.item_ids)
    saved = pl.read_parquet(run.path / "signals.parquet")
    assert saved.drop("weights").equals(expected.drop("weights"))
    np.testing.assert_allclose(
        saved["weights"].explode().fill_null(0).to_numpy(),
        expected["weights"].explode().fill_null(0).to_numpy(),
        rtol=1e-4,
    )
    assert saved["weights"].explode().drop_nulls().is_finite().all()
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in log][:4] == ["diffusion"] * 4
    assert {line["phase"] for line in log[4:]} == {"backbone"}


def test_signals_do_not_depend_on_validation_and_test_items(split, tmp_path):
    """Other items in the last two interactions of every user give the same signals."""
    data, subset = split.dataset, split.subset
    items = data.interactions.items.copy()
    items[subset != 0] = (items[subset != 0] + 11) % data.num_items
    other = dataclasses.replace(data, interactions=dataclasses.replace(data.interactions, items=items))
    # Validation selects the epoch of the first phase, so it has one validation only.
    config = tiny(diffusion=TINY["diffusion"] | {"validate_every": 4})
    first = rd.train("pdrec", split, tmp_path / "a", config=config, seed=1)
    second = rd.train("pdrec", Split(other, split.name, {}, subset), tmp_path / "b", config=config, seed=1)
    left, right = (pl.read_parquet(run.path / "signals.parquet") for run in (first, second))
    assert left.equals(right)


def test_a_phase_can_be_taken_from_a_run(split, tmp_path):
    whole = rd.train("pdrec", split, tmp_path / "whole", config=tiny(), seed=1)
    options = read_run(whole.path).model.diffusion.config.model_dump()
    # Trained with another seed, so the weights are not the same by chance.
    first = rd.train("tdiffrec", split, tmp_path / "first", config=options, seed=5)
    rest = {name: value for name, value in tiny().items() if name != "diffusion"}
    second = rd.train("pdrec", split, tmp_path / "second", config=rest, seed=1, phases_from={"diffusion": first.path})
    log = [json.loads(line) for line in (second.path / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in log} == {"backbone"}
    saved, taken = weights(second.path), weights(first.path)
    assert all(
        torch.equal(saved[f"diffusion.{name}"], tensor) for name, tensor in taken.items() if "folded" not in name
    )
    assert second.config["phases_from"]["diffusion"]["run"] == str(first.path)
    with pytest.raises(ConfigError, match="Leave out the options"):
        rd.train("pdrec", split, tmp_path / "x", config=tiny(), phases_from={"diffusion": first.path})
    with pytest.raises(ConfigError, match="no phase"):
        rd.train("gru4rec", split, tmp_path / "y", phases_from={"encoder": first.path})
    ratio = rd.split.ratio(split.dataset)
    with pytest.raises(RunError, match="another split"):
        rd.train("pdrec", ratio, tmp_path / "z", config=rest, phases_from={"diffusion": first.path})


@pytest.fixture(scope="module")
def alone(split, tmp_path_factory):
    """A run whose first phase is best before its last epoch."""
    fast = {"epochs": 4, "hidden_sizes": [16], "validate_every": 1, "batch_size": 32, "learning_rate": 0.2}
    run = rd.train("pdrec", split, tmp_path_factory.mktemp("alone") / "run", config=tiny(diffusion=fast), seed=3)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    values = [line["validation"]["recall@20/unseen"] for line in lines if line["phase"] == "diffusion"]
    assert max(values) > values[-1]
    return run


@pytest.mark.parametrize(("place", "count"), [("step", 4), ("checkpoint", 12), ("signals", 0), ("step", 13)])
def test_a_killed_run_resumes_within_and_between_phases(split, alone, tmp_path, place, count):
    asked = {"config": alone.config["config"], "seed": 3}
    dies(place, count, rd.train, "pdrec", split, tmp_path / "run", **asked)
    again = rd.train("pdrec", split, tmp_path / "run", **asked, resume=True)
    assert same(weights(alone.path), weights(again.path))
    assert again.validation == alone.validation
    tables = [pl.read_parquet(run.path / "signals.parquet") for run in (alone, again)]
    assert tables[0].equals(tables[1])


def test_a_time_limit_in_the_first_phase_is_reported_and_the_training_is_resumed(split, tmp_path):
    with pytest.raises(TrainingError, match="phase 'diffusion'"):
        rd.train("pdrec", split, tmp_path / "run", config=tiny(), seed=1, max_minutes=0)
    again = rd.train("pdrec", split, tmp_path / "run", config=tiny(), seed=1, resume=True)
    whole = rd.train("pdrec", split, tmp_path / "whole", config=tiny(), seed=1)
    assert same(weights(again.path), weights(whole.path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "sasrek"}, "sasrec"),
        ({"backbone": "ease"}, "not a backbone"),
        ({"diffusion": {"hidden": 3}}, "hidden_sizes"),
        ({"backbone_options": {"learning_rate": 1}}, "learning_rate"),
        ({"backbone_options": {"blocs": 1}}, "blocks"),
        ({"loss": "softmax"}, "nns=false"),
        ({"band_from": 99.5}, "band_to"),
        ({"liked": 6}, "candidates"),
    ],
)
def test_options_that_do_not_fit_are_refused(split, tmp_path, options, said):
    with pytest.raises(ConfigError, match=said):
        rd.train("pdrec", split, tmp_path / "run", config=tiny(**options))
    assert not (tmp_path / "run").exists()
