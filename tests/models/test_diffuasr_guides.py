"""DiffuASR's guides, its released training and its item vectors, beside formulas written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.fitting import steps, training_data
from tests.models.test_diffuasr import ITEMS, SMALL, build, ring, trained
from torch.nn import functional as F

from rediffuse.batching.continuations import Continuations
from rediffuse.data.histories import Histories
from rediffuse.diffusion.noise import RowNoise, row_keys
from rediffuse.errors import ConfigError
from rediffuse.models.diffuasr import DiffuASR, Goal
from rediffuse.training.optimizer import Optimizer

GUIDES = ("item", "cond", "seq", "bpr")


@pytest.fixture(scope="module")
def guided() -> DiffuASR:
    return trained(epochs=(15, 10), guidance="cg", classifier=SMALL["classifier"] | {"temperature": 0.2})


def with_options(model: DiffuASR, **options) -> DiffuASR:
    """The model with other options of sampling."""
    model.config = model.config.model_copy(update={"guide": "item", "fidelity": "corrected"} | options)
    return model


def batch_of(rows, size: int = 400):
    return Continuations(
        rows, length=3, max_length=50, batch_size=size, anywhere=True, rng=np.random.default_rng(0)
    ).get(0)


def goal_of(model: DiffuASR, batch) -> Goal:
    first = batch.items[batch.offsets]
    other = (first + 7) % ITEMS
    return Goal(first, model.conditions(batch.items, batch.offsets), batch.items, batch.offsets, other)


# --- guides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fidelity", ["corrected", "released"])
@pytest.mark.parametrize("guide", GUIDES)
@torch.no_grad()
def test_what_a_guide_makes_likely(guided, guide, fidelity):
    model, batch = with_options(guided, guide=guide, fidelity=fidelity), batch_of(ring(20, 7))
    x, goal = torch.randn(len(batch.targets), 3, 16), goal_of(guided, batch)
    found = model.log_prob(x, *goal)
    states = model.classifier.read_vectors(x * model.scale())
    table = model.classifier.item_embedding.weight[:ITEMS]
    ends = [*batch.offsets[1:].tolist(), len(batch.items)]
    for row, (state, start, end) in enumerate(zip(states, batch.offsets.tolist(), ends, strict=True)):
        if fidelity == "released":
            logits = [float(state @ vector) for vector in table]
            likely = [-math.log1p(math.exp(-logit)) for logit in logits]
        else:
            logits = [float(F.cosine_similarity(state, vector, dim=0)) / 0.2 for vector in table]
            total = math.log(sum(math.exp(logit) for logit in logits))
            likely = [logit - total for logit in logits]
        own = batch.items[start:end].tolist()
        expected = {
            "item": likely[own[0]],
            "seq": np.mean([likely[item] for item in own]),
            "bpr": -math.log1p(math.exp(logits[(own[0] + 7) % ITEMS] - logits[own[0]])),
            "cond": -float(((state / model.scale() - goal.condition[row]) ** 2).mean()),
        }[guide]
        assert found[row].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    with_options(guided)


@pytest.mark.parametrize("guide", GUIDES)
@torch.no_grad()
def test_guided_samples_come_nearer_to_the_goal(guided, guide):
    batch = batch_of(ring(60, 7, seed=4))
    goal, rows = goal_of(guided, batch), len(batch.targets)
    keys = row_keys(batch.targets, torch.full((rows,), 3))

    def reached(guidance: str) -> torch.Tensor:
        model = with_options(guided, guide=guide, guidance=guidance)
        x = model.sample(goal.condition, goal.first, RowNoise(keys, 0), goal)
        return model.log_prob(x, *goal)

    gain = reached("cg") - reached("none")
    with_options(guided, guidance="cg")
    assert gain.mean() > 2 * gain.std() / rows**0.5


@torch.no_grad()
def test_the_item_beside_the_goal_is_another_and_any_other(guided, monkeypatch):
    model, seen = with_options(guided, guide="bpr"), []
    monkeypatch.setattr(model, "log_prob", lambda x, first, *rest: seen.append((first, rest[-1])) or x.sum((1, 2)))
    first = torch.arange(4000) % ITEMS
    keys = torch.arange(4000)
    condition = torch.zeros(4000, 16)
    network = model.guided(model.network(condition), condition, Goal(first, condition), RowNoise(keys, 0))
    with torch.enable_grad():
        network(torch.zeros(4000, 3, 16), torch.zeros(4000, dtype=torch.int64))
    (_, other), *_ = seen
    away = (other - first) % ITEMS
    counts = torch.bincount(away, minlength=ITEMS)
    assert counts[0] == 0
    assert (counts[1:] - 4000 / 19).abs().max() < 5 * math.sqrt(4000 / 19)
    monkeypatch.undo()
    with_options(guided)


def test_every_guide_generates_by_row_and_seed(guided):
    rows = ring(12, 5, seed=2)
    for guide in GUIDES:
        model = with_options(guided, guide=guide)
        whole = model.generate(rows, 3)
        alone = np.concatenate([model.generate(rows.take(np.array([row])), 3) for row in range(4)])
        assert np.array_equal(whole[:4], alone)
    with_options(guided)


# --- released training ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["none", "cf", "cg"])
def test_the_released_training_predicts_noise_under_guidance(guidance):
    model = build(fidelity="released", guidance=guidance, guidance_scale=1.5, pool="sum", item_vectors="own")
    model.fit(training_data(ring(30), ITEMS))
    batch = batch_of(ring(30), 8)
    torch.manual_seed(6)
    found = model.loss(batch).item()
    torch.manual_seed(6)
    table = model.own_vectors
    x_0 = table[batch.targets]
    ends = [*batch.offsets[1:].tolist(), len(batch.items)]
    pairs = zip(batch.offsets.tolist(), ends, strict=True)
    condition = torch.stack([table[batch.items[start:end]].sum(0) for start, end in pairs])
    half = torch.randint(1000, (len(x_0) // 2 + 1,))
    t = torch.cat((half, 999 - half))[: len(x_0)]
    noise = torch.randn_like(x_0)
    abar = model.schedule.alphas_cumprod[t].float()[:, None, None]
    x_t = (abar.sqrt() * x_0 + (1 - abar).sqrt() * noise).detach()
    output = model.generator(x_t, t, condition)
    if guidance == "cf":
        output = 2.5 * output - 1.5 * model.generator(x_t, t, model.no_condition.expand(len(x_t), -1))
    elif guidance == "cg":
        point = x_t.clone().requires_grad_()
        logit = (model.classifier.read_vectors(point) * table[batch.items[batch.offsets]]).sum(1)
        (gradient,) = torch.autograd.grad(-F.logsigmoid(logit).sum(), point)
        output = output - 1.5 * (1 - model.schedule.alphas_cumprod[0]).sqrt().float() * gradient
    assert found == pytest.approx((output - noise).square().mean().item(), rel=1e-4)


@pytest.mark.parametrize("guidance", ["cf", "cg"])
def test_the_corrected_training_is_without_guidance(guidance):
    model = build(guidance=guidance, condition_dropout=0.0)
    model.fit(training_data(ring(30), ITEMS))
    batch = batch_of(ring(30), 8)
    losses = []
    for scale in (0.0, 50.0):
        model.config = model.config.model_copy(update={"guidance_scale": scale})
        torch.manual_seed(6)
        losses.append(model.loss(batch).item())
    assert losses[0] == losses[1]


# --- item vectors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["frozen", "trained", "own"])
def test_which_item_vectors_are_noised_and_trained(kind):
    model, data = build(item_vectors=kind, guidance="cf"), training_data(ring(40), ITEMS)
    model.fit(data)
    model.begin_phase("generator", data)
    of_classifier = model.classifier.catalogue().detach().clone()
    before = model.table().detach().clone()
    assert torch.equal(before, of_classifier) == (kind != "own")
    if kind == "own":
        assert before.std().item() == pytest.approx(1, abs=0.15)
    assert model.vectors(torch.arange(ITEMS)).square().mean().item() == pytest.approx(1, abs=0.3)
    steps(model, data, 3, 0.01)
    after = model.table().detach().clone()
    assert torch.equal(before, after) == (kind == "frozen")
    assert torch.equal(model.classifier.catalogue(), of_classifier)
    model.begin_phase("generator", data)  # as in a resumed training
    assert torch.equal(model.table(), after)
    names = [name for name in model.state_dict() if name in ("own_vectors", "vector_changes")]
    assert names == {"frozen": [], "trained": ["vector_changes"], "own": ["own_vectors"]}[kind]


def test_generated_vectors_are_rounded_to_the_vectors_that_were_noised(monkeypatch):
    model = build(item_vectors="own", guidance="none")
    wanted = torch.arange(3)
    monkeypatch.setattr(model, "sample", lambda condition, *_: model.own_vectors[wanted].expand(len(condition), -1, -1))
    assert model.generate(Histories.from_lists([[7, 8], [9]])).tolist() == [[0, 1, 2], [0, 1, 2]]


def test_joint_vectors_learn_from_the_generators_loss():
    """Lower noise loss, and gradients that finite differences confirm."""
    model, data = build(item_vectors="trained", guidance="none"), training_data(ring(60), ITEMS)
    model.fit(data)
    model.begin_phase("generator", data)
    batch = batch_of(ring(60), 16)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return model.loss(batch)

    (gradient,) = torch.autograd.grad(loss(), [model.vector_changes])
    item, column, scale = int(batch.targets[0, 0]), 2, float(model.scale())
    with torch.no_grad():
        model.vector_changes[item, column] += 1e-2 * scale
        above = loss().item()
        model.vector_changes[item, column] -= 2e-2 * scale
        below = loss().item()
    assert gradient[item, column].item() == pytest.approx((above - below) / (2e-2 * scale), rel=0.05, abs=1e-3)
    assert any(
        model.vector_changes is p
        for group in Optimizer(model.parameter_groups(), 0.1, 0.0).param_groups
        for p in group["params"]
    )


def test_few_steps_need_the_schedule_that_the_error_recommends():
    few = {"diffusion_steps": 20, "sampling_steps": 5}
    with pytest.raises(ConfigError, match="the schedule cosine, which ends in noise"):
        build(**few)
    assert build(**few, noise_schedule="cosine").schedule.sqrt_alphas_cumprod[-1] < 0.05


def test_the_classifier_does_not_guide_vectors_it_does_not_know():
    with pytest.raises(ConfigError, match="does not know the vectors of item_vectors=own"):
        DiffuASR.Config.build(None, {"guidance": "cg", "item_vectors": "own"})
    released = DiffuASR.Config.build("released")
    assert (released.item_vectors, released.guidance) == ("own", "cg")
