"""Learning rates, averages of the weights and accumulated gradients: formulas, and exact resuming."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from tests.dying import dies
from torch import nn

import rediffuse as rd
from rediffuse.config import ModelConfig
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.models import model_class
from rediffuse.testing import synthetic_interactions
from rediffuse.training import loop
from rediffuse.training.averaging import Averaging
from rediffuse.training.schedule import Schedule
from rediffuse.training.train import make_trainer

TINY = {"embedding_size": 16, "batch_size": 64, "epochs": 4, "blocks": 1, "precision": "fp32", "learning_rate": 0.01}


@pytest.fixture(scope="module")
def split():
    return rd.split.leave_one_out(synthetic_interactions())


def rates(steps: int, per_epoch: int = 10, **options) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = Schedule(optimizer, ModelConfig(**options), per_epoch, steps // per_epoch)
    found = []
    for _ in range(steps):
        found.append(schedule.rate)
        optimizer.step()
        schedule.step()
    return found


FORMULAS = {
    "constant": lambda i, n: 1.0,
    "linear": lambda i, n: 1 - i / n,
    "cosine": lambda i, n: (1 + math.cos(math.pi * i / n)) / 2,
    "exponential": lambda i, n: 0.01 ** (i / n),
}


@pytest.mark.parametrize("warmup", [0, 7, 0.2])
@pytest.mark.parametrize("name", FORMULAS)
def test_rates_follow_the_formula(name, warmup):
    steps = 50
    rise = warmup if warmup >= 1 else int(warmup * steps)
    wanted = [0.5 * (i + 1) / (rise + 1) for i in range(rise)]
    wanted += [0.5 * FORMULAS[name](i, steps - rise) for i in range(steps - rise)]
    assert rates(steps, learning_rate_schedule=name, warmup=warmup) == pytest.approx(wanted, rel=1e-6)


def test_decays_in_steps_and_within_them():
    assert rates(40, learning_rate_decay_every=2) == pytest.approx([0.5] * 20 + [0.05] * 20)
    smooth = rates(40, learning_rate_decay_every=2, learning_rate_schedule="exponential")
    assert smooth == pytest.approx([0.5 * 0.1 ** (i / 20) for i in range(40)])
    with pytest.raises(ConfigError, match="does not go with learning_rate_schedule=cosine"):
        ModelConfig.build(None, {"learning_rate_decay_every": 2, "learning_rate_schedule": "cosine"})
    with pytest.warns(RediffuseWarning, match="longer than the training of 10 steps"):
        rates(10, warmup=30)


def test_the_average_is_that_of_the_formula():
    model = nn.Linear(2, 1, bias=False)
    averaging, values = Averaging(model, 0.9), []
    for value in (1.0, 2.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        averaging.update()
        values.append(value)
    wanted = (values[0] * 0.9 + values[1] * 0.1) * 0.9 + values[2] * 0.1
    with averaging.applied():
        assert model.weight[0, 0].item() == pytest.approx(wanted)
    assert model.weight[0, 0].item() == 5.0


OPTIONS = {
    "cosine": {"learning_rate_schedule": "cosine", "warmup": 5},
    "linear": {"learning_rate_schedule": "linear", "warmup": 0.3},
    "exponential": {"learning_rate_schedule": "exponential"},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 3, "clip_norm": 1.0},
    "rows": {"item_optimizer": "rowwise_adagrad", "loss": "bce", "ema": 0.9, "accumulate": 2, "warmup": 4},
}


def weights(run):
    return load_file(run / "model.safetensors")


def log(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    "options",
    # "rows" has an average, "cosine" a schedule.
    [
        pytest.param(options, marks=pytest.mark.slow if name in ("linear", "exponential", "ema") else (), id=name)
        for name, options in OPTIONS.items()
    ],
)
def test_a_killed_run_resumes_to_the_same_weights(split, tmp_path, options):
    config = TINY | options
    whole = rd.train("sasrec", split, tmp_path / "whole", config=config)
    dies("step", 17, rd.train, "sasrec", split, tmp_path / "run", config=config)
    rd.train("sasrec", split, tmp_path / "run", config=config, resume=True)
    assert same(weights(tmp_path / "run"), weights(whole.path))
    assert log(tmp_path / "run") == log(whole.path)
    plain = rd.train("sasrec", split, tmp_path / "plain", config=TINY)
    assert not same(weights(plain.path), weights(whole.path))


def test_other_epochs_are_refused_where_the_rates_depend_on_them(split, tmp_path):
    config = TINY | {"learning_rate_schedule": "cosine"}
    rd.train("sasrec", split, tmp_path / "run", config=config | {"epochs": 2})
    with pytest.raises(RunError, match="Resume with the same epochs"):
        rd.train("sasrec", split, tmp_path / "run", config=config | {"epochs": 5}, resume=True)
    free = TINY | {"warmup": 3}
    rd.train("sasrec", split, tmp_path / "free", config=free | {"epochs": 2})
    longer = rd.train("sasrec", split, tmp_path / "free", config=free | {"epochs": 3}, resume=True)
    at_once = rd.train("sasrec", split, tmp_path / "at_once", config=free | {"epochs": 3})
    assert same(weights(longer.path), weights(at_once.path))


def test_a_group_longer_than_an_epoch_makes_one_step_per_epoch(split, tmp_path, monkeypatch):
    calls = []
    step = loop.Optimizer.step

    def counted(self, *args):
        calls.append(1)
        return step(self, *args)

    monkeypatch.setattr(loop.Optimizer, "step", counted)
    rd.train("sasrec", split, tmp_path / "run", config=TINY | {"accumulate": 1000})
    assert len(calls) == TINY["epochs"]


def test_accumulated_gradients_are_the_mean_of_the_group(split, tmp_path):
    """Against the gradients of single batches at the same weights: a full group, and the smaller last one."""
    kind = model_class("sasrec")
    options = TINY | {"batch_size": 60, "accumulate": 4, "dropout": 0.0}
    config = kind.Config.build(None, options)
    trainer = make_trainer(kind, config, split.training_view(), tmp_path, seed=0, user_ids=split.dataset.user_ids)
    trainer.model.fit(trainer.data)
    _, _, network, stepper = trainer.begin_phase("fit")
    batches = trainer.batches("fit", 0)
    count = len(batches)
    assert count > 4
    assert count % 4
    weight = trainer.model.item_embedding.weight
    for group in (range(4), range(count // 4 * 4, count)):
        wanted = torch.zeros_like(weight)
        for index in group:
            network.zero_grad()
            trainer.model.loss(batches.get(index)).backward()
            wanted += weight.grad / len(group)
        network.zero_grad()
        for index in group:
            trainer.state.step = index
            trainer._step(network, stepper, batches, "fit")
        torch.testing.assert_close(weight.grad, wanted, rtol=1e-4, atol=1e-7)


def test_the_average_answers(split, tmp_path):
    """Without validation data, the last average is what the run keeps."""
    none = rd.split.none(split.dataset)
    averages = []
    update = Averaging.update

    def noted(self):
        update(self)
        averages.append([weight.detach().clone() for weight in self.averaged.module.parameters()])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Averaging, "update", noted)
        run = rd.train("sasrec", none, tmp_path / "run", config=TINY | {"ema": 0.9, "epochs": 2})
    stored = weights(run.path)
    assert len(averages) > 2
    assert all(any(torch.equal(average, tensor) for tensor in stored.values()) for average in averages[-1])


def test_phases_and_refit_with_an_average_and_a_schedule(split, tmp_path):
    config = {"embedding_size": 16, "batch_size": 64, "epochs": 2, "pretrain_epochs": 2, "ema": 0.8, "warmup": 0.2}
    config |= {"learning_rate_schedule": "cosine", "accumulate": 2, "precision": "fp32"}
    run = rd.train("s3rec", split, tmp_path / "run", config=config)
    for place, count in (("step", 1), ("checkpoint", 4), ("step", 6)):  # in the first phase, between them, in the last
        folder = tmp_path / f"{place}{count}"
        dies(place, count, rd.train, "s3rec", split, folder, config=config)
        rd.train("s3rec", split, folder, config=config, resume=True)
        assert same(weights(folder), weights(run.path))
    again = rd.refit(run, split.dataset, tmp_path / "live")
    assert "all" in again.config["training"]["stopped"]
