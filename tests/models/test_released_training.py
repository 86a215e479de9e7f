"""Released presets train as the authors' programs do: initial weights, learning rates, Adam's averages, penalties."""

from __future__ import annotations

import pytest
import torch

import rediffuse as rd
from rediffuse.config import ModelConfig
from rediffuse.models import model_class
from rediffuse.models.diffrec import TDiffRec
from rediffuse.models.diffurec import DiffuRec
from rediffuse.models.pdrec import PDRec
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
        assert found == pytest.approx([options.learning_rate * 0.99**epoch for epoch in range(20)], rel=1e-3)
        assert options.epochs == 1000
    if preset.startswith("paper:"):
        assert rates(TDiffRec.Config.build(preset), 3, 5)[2] == pytest.approx(5e-5 * 0.99**2, rel=1e-3)


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
