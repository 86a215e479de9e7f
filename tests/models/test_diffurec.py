"""DiffuRec's chain, its noise and its options, against plain loops over the formulas."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data

import rediffuse as rd
from rediffuse.batching.sequences import SequenceBatch
from rediffuse.data.histories import Histories
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError, RediffuseWarning
from rediffuse.files import sha256_file, sha256_json
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.sampling import Sampling
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions

ITEMS, SIZE, STEPS = 20, 16, 8
SMALL = {
    "embedding_size": SIZE,
    "blocks": 2,
    "heads": 2,
    "max_length": 8,
    "precision": "fp32",
    "diffusion_steps": STEPS,
    "sampling_steps": STEPS,
    "lambda_uncertainty": 0.3,
}
GUIDED = {"history_dropout": 0.2, "guidance": 1.5}
VARIANTS = {
    "default": {},
    "rows": {"normalize": False},
    "self-conditioned": {"self_conditioning": True},
    "guided": GUIDED,
    "both": GUIDED | {"self_conditioning": True},
    "both, rows, ligr": GUIDED | {"self_conditioning": True, "normalize": False, "block": "ligr"},
}
WINDOWS, LENGTHS = torch.tensor([[1, 2, 3, 4], [7, 8, ITEMS, ITEMS]]), torch.tensor([4, 2])


def build(**options) -> DiffuRec:
    """A model in evaluation mode. None of its weights is at a value where a normalisation would change nothing."""
    torch.manual_seed(0)
    model = DiffuRec(DiffuRec.Config.build(None, SMALL | options), ITEMS).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model


def betas(name: str) -> list[float]:
    """Of the schedules cosine (Nichol & Dhariwal 2021, eq. 17) and trunc_lin (DiffuRec's program; few steps)."""
    if name == "trunc_lin":
        scale = 1000 / STEPS
        return np.linspace(1e-4 * scale + 0.01, 0.001 * scale + 0.01, STEPS).tolist()
    abar = [math.cos((t / STEPS + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(STEPS + 1)]
    return [min(1 - abar[t + 1] / abar[t], 0.999) for t in range(STEPS)]


def plain_chain(model: DiffuRec, items: torch.Tensor, lengths: torch.Tensor, seed: int) -> torch.Tensor:
    """DDPM's ancestral sampling (Ho et al. 2020, algorithm 2), encoding the whole history anew at every step."""
    config, net, rows = model.config, model.approximator, torch.arange(len(items))
    noise = RowNoise(row_keys(items, lengths), seed)

    def scaled(x):
        return x / x.square().mean(-1, keepdim=True).sqrt() if config.normalize else x

    def token(z, x_t, t, estimate, drawn):
        carried = x_t + net.embed_time(torch.tensor(t))
        if estimate is not None:
            carried = carried + estimate @ net.earlier.weight.T
        return z + config.lambda_uncertainty * (1 + drawn) * carried

    beta = betas(config.noise_schedule)
    abar = np.cumprod([1 - b for b in beta])
    table = model.item_embedding.weight
    z = net.norm(table[items])
    x, estimate = noise(z[:, 0]), None
    for t in reversed(range(STEPS)):
        if config.form == "prefix":
            tokens = token(z, x[:, None], t, None if estimate is None else estimate[:, None], noise(z))
        else:
            following = math.sqrt(abar[0]) * scaled(table[torch.roll(items, -1, 1)])
            tokens = token(z, following, 0, None, torch.zeros_like(z))
            last = z[rows, lengths - 1]
            tokens[rows, lengths - 1] = token(last, x, t, estimate, noise(last[:, None])[:, 0])
        hat = scaled(net.encoder(tokens, lengths)[rows, lengths - 1])
        if config.guidance:
            empty = net.no_history.expand(len(items), 1, -1)
            alone = token(empty[:, 0], x, t, None, noise(empty)[:, 0])
            without = scaled(net.encoder(alone[:, None], torch.ones_like(lengths))[:, 0])
            hat = scaled(hat + config.guidance * (hat - without))
        estimate = hat if config.self_conditioning else None
        before = abar[t - 1] if t else 1.0
        mean = (math.sqrt(before) * beta[t] * hat + math.sqrt(1 - beta[t]) * (1 - before) * x) / (1 - abar[t])
        spread = math.sqrt(beta[t] * (1 - before) / (1 - abar[t]))
        x = mean + (spread * noise(x) if t else 0)
    return x


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["causal", "prefix"])
def test_sampling_equals_the_plain_reverse_chain(form, variant):
    model = build(form=form, **VARIANTS[variant])
    with torch.no_grad():
        found = model.represent(WINDOWS, LENGTHS, Sampling(seed=3))
        expected = plain_chain(model, WINDOWS, LENGTHS, seed=3)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)
    if model.config.normalize:
        torch.testing.assert_close(found.square().mean(-1), torch.ones(2))


@pytest.mark.filterwarnings("ignore:Noise schedule 'trunc_lin' with steps=8:rediffuse.errors.RediffuseWarning")
def test_the_chain_as_in_the_paper_too():
    model = build(form="prefix", normalize=False, noise_schedule="trunc_lin")
    with torch.no_grad():
        found = model.represent(WINDOWS, LENGTHS, Sampling(seed=3))
        expected = plain_chain(model, WINDOWS, LENGTHS, seed=3)
    torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("option", ["guidance", "self_conditioning"])
def test_the_options_change_what_is_sampled(option):
    """So that the comparisons above could fail."""
    with_option, rows = build(**VARIANTS["both"]), Histories.from_lists([[1, 2, 3], [5]])
    without = build(**VARIANTS["both"] | {option: 0 if option == "guidance" else False})
    without.load_state_dict(with_option.state_dict(), strict=False)
    assert not torch.allclose(with_option.score(rows), without.score(rows), atol=0.01)


@pytest.mark.parametrize("form", ["causal", "prefix"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_of_a_row_do_not_depend_on_its_batch(variant, form):
    model = build(form=form, **VARIANTS[variant])
    rows = Histories.from_lists([[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 12, 13, 14], [3, 3, 2]])
    batch = model.score(rows, seed=9)
    for row in range(4):
        alone = model.score(rows.take(np.array([row])), seed=9)
        torch.testing.assert_close(alone[0], batch[row], rtol=1e-3, atol=1e-3)


# --- training ------------------------------------------------------------------------------------------------------


def a_batch(open_end: bool = False) -> SequenceBatch:
    rows, positions = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 3, 0, 1])
    targets = torch.tensor([2, 3, 5, 8, ITEMS if open_end else 9])
    return SequenceBatch(WINDOWS, LENGTHS, rows, positions, targets, torch.arange(5))


def recorded(model: DiffuRec, monkeypatch) -> list[dict]:
    """The calls of the network in `encode`."""
    calls, condition = [], model.approximator.condition

    def record(z, x_t, t, noise, earlier=None):
        calls.append({"z": z, "x_t": x_t, "t": t, "earlier": earlier})
        return condition(z, x_t, t, noise, earlier)

    monkeypatch.setattr(model.approximator, "condition", record)
    return calls


def test_vectors_of_rms_one_are_noised(monkeypatch):
    model = build()
    calls, batch = recorded(model, monkeypatch), a_batch()
    torch.manual_seed(1)
    vectors = model.encode(batch).vectors
    torch.testing.assert_close(vectors.square().mean(-1), torch.ones(5))
    torch.manual_seed(1)
    t, _ = model.timesteps.sample(5, device="cpu")
    rows = model.item_embedding.weight[batch.targets]
    x_0 = rows / rows.square().mean(-1, keepdim=True).sqrt()
    abar = torch.from_numpy(np.cumprod([1 - b for b in betas("cosine")]))[t][:, None].float()
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * torch.randn_like(x_0)
    torch.testing.assert_close(calls[0]["x_t"][batch.rows, batch.positions], x_t, rtol=1e-4, atol=1e-5)


def test_half_of_the_targets_are_denoised_from_an_estimate_without_a_gradient(monkeypatch):
    model = build(self_conditioning=True)
    calls, batch, given = recorded(model, monkeypatch), a_batch(), []
    for trial in range(200):
        calls.clear()
        torch.manual_seed(trial)
        model.encode(batch)
        first, second = calls
        assert first["earlier"] is None
        assert torch.equal(first["x_t"], second["x_t"])
        estimate = second["earlier"][batch.rows, batch.positions]
        assert not estimate.requires_grad
        size = estimate.square().mean(-1)
        assert ((size - 1).abs().lt(1e-4) | (size == 0)).all()
        given += (size > 0).tolist()
    assert abs(np.mean(given) - 0.5) < 0.07  # 1,000 draws: 4.4 standard deviations


def test_a_share_of_the_targets_is_denoised_without_history(monkeypatch):
    model, batch = build(history_dropout=0.3, self_conditioning=True), a_batch()
    calls, dropped = recorded(model, monkeypatch), 0
    for trial in range(200):
        calls.clear()
        torch.manual_seed(trial)
        model.encode(batch)
        alone = calls[-1]
        assert alone["z"].shape == (len(alone["x_t"]), 1, SIZE)
        assert alone["earlier"] is None  # an estimate knows the history
        own = calls[0]["x_t"][batch.rows, batch.positions]
        assert all((own == x_t).all(1).any() for x_t in alone["x_t"])
        dropped += len(alone["x_t"])
    assert abs(dropped / 1000 - 0.3) < 0.065


def test_the_history_of_dropped_targets_has_no_influence():
    model = build(history_dropout=0.999, lambda_uncertainty=0.5)
    batch = a_batch()
    other = SequenceBatch(torch.full_like(WINDOWS, 6), LENGTHS, *list(vars(batch).values())[2:6])
    torch.manual_seed(2)
    expected = model.encode(batch).vectors
    torch.manual_seed(2)
    torch.testing.assert_close(model.encode(other).vectors, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_gets_a_gradient_also_beside_an_open_end(variant):
    model = build(temperature=None, **VARIANTS[variant]).train()
    found: dict[str, bool] = {}
    for seed in range(20):
        torch.manual_seed(seed)
        model.zero_grad()
        (model.encode(a_batch(open_end=True)).vectors * torch.randn(5, SIZE)).sum().backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                assert weight.grad.isfinite().all(), name
                found[name] = found.get(name, False) or bool(weight.grad.any())
    unused = {"repeat"}
    assert {name for name, _ in model.named_parameters() if not found.get(name)} <= unused


def test_training_and_sampling_agree_on_the_scale_of_x0_hat():
    """Else the repeat bias, which is added to inner products, would weigh differently in the two."""
    model = build(temperature=None, sampling_steps=1)
    torch.manual_seed(0)
    assert model.encode(a_batch()).vectors.norm(dim=-1).tolist() == pytest.approx([SIZE**0.5] * 5, rel=1e-4)
    with torch.no_grad():
        queries = model.query_vectors(Histories.from_lists([[1, 2, 3]]), np.array([-1]), Sampling())
    assert queries.norm().item() == pytest.approx(SIZE**0.5, rel=1e-4)


# --- options -------------------------------------------------------------------------------------------------------


def test_the_default_reaches_from_an_item_to_noise():
    config = DiffuRec.Config()
    model = DiffuRec(config, ITEMS)
    data = training_data(Histories.from_lists([[1, 2, 3], [4, 5]]), ITEMS)
    (levels,) = model.eval().noise_levels(data)
    assert levels.rms == pytest.approx(1, rel=1e-5)
    assert levels.estimate_rms == pytest.approx(1, rel=1e-5)
    assert levels.snr[0] > 10
    assert levels.snr[2] < 0.01
    assert levels.remark() is None
    rows_noised = DiffuRec(DiffuRec.Config.build(None, {"normalize": False, "embedding_std": 0.02}), ITEMS).eval()
    assert "hides the item vectors" in str(rows_noised.noise_levels(data)[0].remark())


def test_guidance_needs_a_network_that_can_denoise_without_history():
    with pytest.raises(ConfigError, match=r"guidance=2 needs .*history_dropout is 0(.|\n)*history_dropout"):
        DiffuRec.Config.build(None, {"guidance": 2.0})
    assert DiffuRec.Config.build(None, {"guidance": 2.0, "history_dropout": 0.1}).guidance == 2


def test_without_diffusion_its_options_are_said_to_change_nothing():
    data = training_data(Histories.from_lists([[1, 2, 3]]), ITEMS)
    ablation = build(diffusion=False, self_conditioning=True, **GUIDED)
    with pytest.warns(RediffuseWarning, match=r"self_conditioning=true, history_dropout=0.2, guidance=1.5 changes no"):
        ablation.check(data)
    plain = build(diffusion=False)
    assert ablation.state_dict().keys() == plain.state_dict().keys()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.check(data)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_presets_of_the_paper_noise_rows_of_the_item_table(preset):
    config = DiffuRec.Config.build(preset)
    assert (config.normalize, config.noise_schedule, config.block) == (False, "trunc_lin", "standard")
    assert (config.self_conditioning, config.history_dropout, config.guidance) == (False, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("diffusion", [True, False])
def test_the_preset_esasrec_learns(diffusion):
    overrides = {"embedding_size": SIZE, "batch_size": 64, "precision": "fp32", "diffusion": diffusion}
    torch.manual_seed(0)
    model = DiffuRec(DiffuRec.Config.build("esasrec", overrides), ITEMS)
    starts = np.random.default_rng(0).integers(ITEMS, size=120)
    data = training_data(Histories.from_lists([[(int(s) + i) % ITEMS for i in range(7)] for s in starts]), ITEMS)
    model.fit(data)
    steps(model, data, 12, 0.01)
    rows = Histories.from_lists([[s, (s + 1) % ITEMS] for s in range(ITEMS)])
    assert (model.score(rows).argmax(1) == (torch.arange(ITEMS) + 2) % ITEMS).float().mean() > 0.8


# --- runs ----------------------------------------------------------------------------------------------------------

TINY = {"embedding_size": SIZE, "blocks": 1, "epochs": 1, "batch_size": 64, "precision": "fp32", "sampling_steps": 4}


def as_of_format_1(folder, **changes) -> None:
    """Make a run one of an earlier version: without the options that did not exist, and with what changes."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    assert config["format"] == 2
    config["format"] = 1
    for option in ("normalize", "block", "self_conditioning", "history_dropout", "guidance"):
        config["config"].pop(option, None)
    config["config"] |= changes
    path.write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["config.json"] = sha256_file(path)
    content = {name: manifest[name] for name in ("format", "files")}
    (folder / "manifest.json").write_text(json.dumps(content | {"sha256": sha256_json(content)}))


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


@pytest.mark.filterwarnings("ignore:The noise hides:rediffuse.errors.RediffuseWarning")
@pytest.mark.filterwarnings("ignore:The item vectors are not noise:rediffuse.errors.RediffuseWarning")
def test_a_run_of_before_the_options_scores_as_it_did(split, tmp_path):
    before = {"normalize": False, "noise_schedule": "trunc_lin", "lambda_uncertainty": 0.3}
    run = rd.train("diffurec", split, tmp_path / "run", config=TINY | before, seed=1)
    rows = Histories.from_lists([[1, 2, 3], [5]])
    expected = read_run(run.path).model.score(rows)
    as_of_format_1(run.path)
    contents = read_run(run.path)
    assert contents.model.config.normalize is False
    assert torch.equal(contents.model.score(rows), expected)
    # What is made of it is complete.
    again = rd.refit(run.path, split.dataset, tmp_path / "refitted")
    assert json.loads((again.path / "config.json").read_text())["config"]["normalize"] is False


@pytest.mark.filterwarnings("ignore:The noise hides:rediffuse.errors.RediffuseWarning")
@pytest.mark.filterwarnings("ignore:The item vectors are not noise:rediffuse.errors.RediffuseWarning")
def test_so_does_a_backbone_and_a_part_of_a_blend(split, tmp_path):
    before = {"normalize": False, "noise_schedule": "trunc_lin", "lambda_uncertainty": 0.3}
    backbone = {"embedding_size": SIZE, "sampling_steps": 4, "lambda_uncertainty": 0.3}
    options = {"backbone": "diffurec", "epochs": 1, "diffusion": {"epochs": 1, "hidden_sizes": [8]}}
    whole = options | {"backbone_options": backbone | before}
    pdrec = rd.train("pdrec", split, tmp_path / "pdrec", config=whole, seed=1)
    diffurec = rd.train("diffurec", split, tmp_path / "diffurec", config=TINY | before, seed=1)
    popular = rd.train("popularity", split, tmp_path / "pop")
    blend = rd.blend([diffurec, popular], split.dataset, tmp_path / "blend")
    rows = Histories.from_lists([[1, 2, 3], [5]])
    expected = [read_run(run.path).model.score(rows) for run in (pdrec, blend)]
    as_of_format_1(pdrec.path, backbone_options=backbone)
    parts = json.loads((blend.path / "config.json").read_text())["config"]["parts"]
    for part in parts:
        part["config"].pop("normalize", None)
    as_of_format_1(blend.path, parts=parts)
    for run, scores in zip((pdrec, blend), expected, strict=True):
        model = read_run(run.path).model
        former = model.backbone if run is pdrec else model.parts[0]
        assert (former.config.normalize, former.config.noise_schedule) == (False, "trunc_lin")
        assert torch.equal(model.score(rows), scores)


def test_the_card_states_the_noise(split, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RediffuseWarning)
        run = rd.train("diffurec", split, tmp_path / "run", config=TINY, seed=1)
    (levels,) = run.config["noise"]
    assert levels["snr"][0] > 10
    assert levels["snr"][2] < 0.01
    card = (run.path / "README.md").read_text()
    assert "- Noised: item vectors, root mean square 1 (" in card
    assert f"{levels['snr'][0]:.4g} at t = 0" in card


def test_an_average_of_the_weights_is_what_answers(split, tmp_path):
    """With ``ema``: after steps w_1, w_2, .. the answering weights are their exponential average."""
    seen: list[torch.Tensor] = []

    class Watch:
        def on_step(self, event):
            seen.append(event.model.item_embedding.weight.detach().clone())

    options = TINY | {"ema": 0.5, "self_conditioning": True, "timestep_sampler": "lossaware"}
    run = rd.train("diffurec", split, tmp_path / "run", config=options, seed=1, callbacks=[Watch()])
    average = seen[0]
    for weight in seen[1:]:
        average = 0.5 * average + 0.5 * weight
    found = read_run(run.path).model.item_embedding.weight
    torch.testing.assert_close(found, average, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, seen[-1], atol=1e-5)
