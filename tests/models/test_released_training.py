"""Released presets train as the authors' programs do: initial weights, batches, learning rates, Adam's averages."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.fitting import training_data

import rediffuse as rd
from rediffuse.batching.continuations import Continuations
from rediffuse.config import ModelConfig
from rediffuse.data.histories import Histories
from rediffuse.models import model_class
from rediffuse.models.diffrec import TDiffRec
from rediffuse.models.diffuasr import DiffuASR
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.pdrec import PDRec, open_ended
from rediffuse.models.pdrec_released import PaddedGRU, PaddedTDiffRec
from rediffuse.models.sampling import Sampling
from rediffuse.runs.run_folder import read_run
from rediffuse.testing import synthetic_interactions
from rediffuse.training.optimizer import Optimizer
from rediffuse.training.schedule import Schedule
from rediffuse.training.train import make_trainer


def xavier(weight: torch.Tensor) -> float:
    return (2 / sum(weight.shape)) ** 0.5


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_released_diffurec_begins_with_xavier_normal_layers(preset):
    torch.manual_seed(0)
    model = DiffuRec(DiffuRec.Config.build(preset), 200)
    for block in model.approximator.encoder.blocks:
        for layer in (block.out, block.expand, block.contract):
            found = layer.weight.std().item()
            usual = (1 / (3 * layer.in_features)) ** 0.5  # torch's uniform weights
            assert found == pytest.approx(xavier(layer.weight) if preset == "released" else usual, rel=0.03)
            outside = (layer.weight.abs() > layer.in_features**-0.5).float().mean().item()
            assert (outside > 0.01) == (preset == "released")  # a normal distribution has tails
        assert block.qkv.weight.abs().max() <= block.qkv.in_features**-0.5  # the program leaves these
    assert model.item_embedding.weight.std().item() == pytest.approx(1, rel=0.03)


@pytest.mark.parametrize(("preset", "expected"), [("released", True), ("paper", False)])
def test_released_pdrec_begins_with_xavier_normal_matrices(preset, expected):
    torch.manual_seed(0)
    model = PDRec(PDRec.Config.build(preset), 500)
    found = [
        weight.std().item() == pytest.approx(xavier(weight), rel=0.06)
        for weight in model.backbone.parameters()
        if weight.dim() > 1 and weight.numel() > 1000
    ]
    assert len(found) >= 3
    assert all(found) == expected


def rates(config: ModelConfig, epochs: int, steps: int) -> list[float]:
    """The learning rate at the start of each epoch."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = Optimizer([{"params": [weight]}], config.learning_rate, 0.0)
    schedule, found = Schedule(optimizer, config, steps, config.epochs), []
    for step in range(epochs * steps):
        if step % steps == 0:
            found.append(schedule.rate)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("preset", ["paper", "released", "paper:toys", "paper:douban-book"])
def test_pdrec_and_its_ti_diffrec_lower_their_rates_by_a_hundredth_an_epoch(preset):
    config = PDRec.Config.build(preset)
    for options in (config.backbone_config(), config.diffusion_config()):
        found = rates(options, 20, 7)
        assert found == pytest.approx([options.learning_rate * 0.99**epoch for epoch in range(20)], rel=1e-9)
        assert options.epochs == 1000
    if preset.startswith("paper:"):
        assert rates(TDiffRec.Config.build(preset), 3, 5)[2] == pytest.approx(5e-5 * 0.99**2, rel=1e-9)


def test_adams_averages_are_those_of_the_options(tmp_path):
    split = rd.split.leave_one_out(synthetic_interactions())
    for options, beta2 in (({}, 0.999), ({"adam_beta2": 0.98}, 0.98)):
        kind = model_class("gru4rec")
        config = kind.Config.build(None, options)
        trainer = make_trainer(kind, config, split.training_view(), tmp_path, seed=0, user_ids=split.dataset.user_ids)
        optimizer = trainer.begin_phase("fit")[0]
        assert optimizer.param_groups[0]["betas"] == (0.9, beta2)
    assert PDRec.Config.build("released").backbone_config().adam_beta2 == 0.98
    assert PDRec.Config.build("released").diffusion_config().adam_beta2 == 0.999


def test_one_step_of_adam_by_hand():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = Optimizer([{"params": [weight]}], 0.1, 0.0, beta2=0.98)
    first = second = torch.zeros(2)
    expected = weight.detach().clone()
    for step in range(1, 4):
        weight.grad = gradient = torch.tensor([0.5 * step, -1.0])
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.98 * second + 0.02 * gradient**2
        expected -= 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.98**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected)


def test_released_diffkg_has_the_default_penalty_of_the_program():
    assert model_class("diffkg").Config.build("released").reg == 1e-7


# --- batches -----------------------------------------------------------------------------------------------------

ITEMS = 30


def histories(seed: int = 0, users: int = 60, longest: int = 12) -> Histories:
    """Of 0 to ``longest`` interactions."""
    rng = np.random.default_rng(seed)
    return Histories.from_lists(
        [rng.integers(ITEMS, size=length).tolist() for length in rng.integers(longest + 1, size=users)]
    )


def test_released_diffurec_trains_on_random_prefixes():
    rows = histories(users=200)
    model = DiffuRec(DiffuRec.Config.build("released", {"batch_size": 32, "embedding_size": 8, "max_length": 6}), ITEMS)
    batches = model.batches(training_data(rows, ITEMS), np.random.default_rng(1))
    made = [batches.get(index) for index in range(len(batches))]
    assert {len(batch.targets) for batch in made[:-1]} == {32}
    found = [
        (tuple(items[:length].tolist()), target)
        for batch in made
        for items, length, target in zip(batch.items, batch.lengths.tolist(), batch.targets.tolist(), strict=True)
    ]
    expected = [
        (tuple(row[max(0, end - 6) : end]), row[end])
        for row in (rows.row(user).tolist() for user in range(len(rows)))
        for end in range(1, len(row))
    ]
    assert sorted(found) == sorted(expected)
    # Lengths do not depend on the batch: their spread within batches is that of all.
    within = np.mean([batch.lengths.double().var().item() for batch in made[:-1]])
    assert within == pytest.approx(np.var([len(items) for items, _ in found]), rel=0.15)


def test_released_diffuasr_learns_from_full_batches_of_long_histories():
    rows = histories(users=90, longest=20)
    options = {"length": 3, "max_length": 4, "batch_size": 16, "anywhere": False, "released": True}
    batches = Continuations(rows, rng=np.random.default_rng(1), **options)
    long = [row for row in (rows.row(user).tolist() for user in range(len(rows))) if len(row) > 5]
    assert len(batches) == len(long) // 16
    for index in range(len(batches)):
        batch = batches.get(index)
        assert len(batch.targets) == 16
        parts = np.split(batch.items.numpy(), batch.offsets[1:].numpy())
        for user, target, following in zip(batches.users(index), batch.targets.tolist(), parts, strict=True):
            row = rows.row(user).tolist()
            assert row in long
            assert (target, following.tolist()) == (row[:3], row[3:][-4:])
    few = Continuations(rows, rng=np.random.default_rng(1), **options | {"batch_size": 1000})
    assert len(few) == 1
    assert len(few.get(0).targets) == len(long)


def test_released_diffuasr_begins_with_a_random_empty_condition_and_samples_towards_the_last_item(monkeypatch):
    small = {"backbone": None, "backbone_options": {}, "n": 2, "multipliers": (1,)}
    model = DiffuASR(DiffuASR.Config.build("released", small | {"classifier": {"embedding_size": 64}}), ITEMS)
    assert model.no_condition.std().item() == pytest.approx(1, abs=0.3)
    wanted = []

    def sample(condition, first, noise, goal):
        wanted.append(goal.first.tolist())
        return noise(condition.new_empty(len(condition), 2, condition.shape[1]))

    monkeypatch.setattr(model, "sample", sample)
    model.generate(Histories.from_lists([[1, 2, 3], [4]]))
    assert wanted == [[3, 4]]


def test_released_diffuasr_keeps_the_generator_with_the_least_training_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("rediffuse.models.diffuasr.RELEASED_PATIENCE", 3)
    states, losses, events = [], [], []

    class Watch:
        def on_step(self, event):
            if event.phase == "generator":  # one step an epoch
                states.append({name: value.clone() for name, value in event.model.generator.state_dict().items()})
                losses.append(event.loss)
                events.append((event.metric, event.best))

    small = {"embedding_size": 16, "max_length": 20, "epochs": 1}
    config = {"n": 2, "backbone": None, "generator_epochs": 60, "generator_rate": 0.02, "multipliers": (1,)}
    split = rd.split.leave_one_out(synthetic_interactions())
    run = rd.train(
        "diffuasr",
        split,
        tmp_path / "run",
        preset="released",
        config=config | {"classifier": small},
        callbacks=[Watch()],
    )
    assert events == [("loss", min(losses[:epoch], default=None)) for epoch in range(len(losses))]
    best = int(np.argmin(losses))
    assert len(losses) == best + 1 + 3 < 60
    kept = read_run(run.path).model.generator.state_dict()
    assert all(torch.equal(kept[name], value) for name, value in states[best].items())
    assert not torch.equal(kept["leave.bias"], states[-1]["leave.bias"])


@pytest.mark.parametrize("window", [4, 20])
def test_released_pdrec_draws_users_with_their_latest_window(window):
    rows = histories(users=50)
    config = PDRec.Config.build("released", {"batch_size": 8}).backbone_config()
    model = PaddedGRU(config.model_copy(update={"max_length": window, "embedding_size": 8}), ITEMS)
    data = dataclasses.replace(training_data(rows, ITEMS), train=open_ended(rows, ITEMS))
    batches = model.batches(data, np.random.default_rng(2))
    assert len(batches) == -(-int((rows.lengths >= 2).sum()) // 8)
    drawn = []
    for index in range(len(batches)):
        batch = batches.get(index)
        assert len(batch.items) == 8
        for row in range(8):
            at = batch.rows == row
            end = int(batch.interactions[at][-1])
            user = int(np.searchsorted(data.train.offsets, end, side="right")) - 1
            whole = rows.row(user).tolist()
            read = batch.items[row, : batch.lengths[row]].tolist()
            assert read == whole[-window - 1 :]
            assert batch.targets[at].tolist() == [*whole[-len(read) + 1 :], ITEMS][-len(read) :]
            drawn.append(user)
    assert len(set(drawn)) < len(drawn)  # with replacement
    assert set(np.flatnonzero(rows.lengths >= 1)) >= set(drawn)


def test_released_gru_reads_padding_to_the_window_and_does_not_train_it():
    torch.manual_seed(0)
    config = PDRec.Config.build("released").backbone_config().model_copy(update={"max_length": 5, "embedding_size": 8})
    model = PaddedGRU(config, ITEMS).double()
    torch.nn.init.normal_(model.start)
    lists = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11]]
    rows = open_ended(Histories.from_lists(lists), ITEMS)
    batch = model.batches(dataclasses.replace(training_data(rows, ITEMS), train=rows), np.random.default_rng(0)).get(0)
    found = model.encode(batch).vectors

    def states(items: list[int]) -> torch.Tensor:
        """At each of the items, which are padded to five on the left."""
        padded = [ITEMS] * (5 - len(items)) + items
        return model.gru(model.item_embedding.weight[padded][None], model.start)[0][0, 5 - len(items) :]

    for vector, row, place, target in zip(found, batch.rows, batch.positions, batch.targets.tolist(), strict=True):
        whole = batch.items[row, : batch.lengths[row]].tolist()
        if target < ITEMS:
            expected = states(whole[:-1])[place]
        elif len(whole) > 1:
            expected = states(whole[-5:])[-1]
        else:  # nothing is known before the only interaction: padding alone
            expected = states([ITEMS])[-1]
        torch.testing.assert_close(vector, expected)
    found.square().sum().backward()
    assert (model.item_embedding.weight.grad[ITEMS] == 0).all()
    assert (model.start.grad != 0).all()
    items, lengths = torch.tensor([[1, 2, 3, ITEMS]]), torch.tensor([3])
    torch.testing.assert_close(model.represent(items, lengths, Sampling())[0], states([1, 2, 3])[-1])


def test_released_ti_diffrec_draws_users_and_has_a_column_of_padding():
    options = {"batch_size": 16, "hidden_sizes": (8,), "diffusion_steps": 3}
    rows = histories(users=100)
    model = PaddedTDiffRec(TDiffRec.Config.build("released", options), ITEMS)
    batches = model.batches(training_data(rows, ITEMS), np.random.default_rng(0))
    users = np.concatenate([batches.users(index) for index in range(len(batches))])
    assert len(users) == 112  # of 100, in whole batches
    assert rows.lengths[users].min() >= 2
    assert len(np.unique(users)) < 80  # with replacement
    known = TDiffRec(model.config, ITEMS)
    model.load_state_dict(known.state_dict())
    for either in (known, model):
        either.eval()
        either.prepare()
    filled = rows.take(np.flatnonzero(rows.lengths))
    torch.testing.assert_close(model.score(filled), known.score(filled))
    scores = model.score_with_padding(filled)
    assert scores.shape == (len(filled), ITEMS + 1)
    assert (scores[:, ITEMS] == 0).all()
