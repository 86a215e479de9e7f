"""S3-Rec: its four tasks, its two phases, and that masked items are hidden."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch
from tests.fitting import steps, training_data

import rediffuse as rd
from rediffuse.data.histories import Histories
from rediffuse.models.base import TrainingData
from rediffuse.models.baselines.s3rec import S3Rec
from rediffuse.readers.interactions import read_interactions
from rediffuse.testing import synthetic_interactions

ITEMS = 20
SMALL = {"embedding_size": 16, "blocks": 1, "heads": 2, "max_length": 8, "batch_size": 64, "precision": "fp32"}


def ring(users: int = 150, length: int = 9) -> Histories:
    starts = np.random.default_rng(0).integers(ITEMS, size=users)
    return Histories.from_lists([[(int(s) + step) % ITEMS for step in range(length)] for s in starts])


def build(features: bool = True, users: int = 150, **options) -> tuple[S3Rec, TrainingData]:
    torch.manual_seed(0)
    model, rows = S3Rec(S3Rec.Config.build(None, SMALL | options), ITEMS), ring(users)
    classes = pl.DataFrame({"genres": [f"class {item // 5}" for item in range(ITEMS)]}) if features else None
    data = dataclasses.replace(training_data(rows, ITEMS), item_table=classes)
    model.fit(data)
    return model, data


def train(model: S3Rec, data: TrainingData, phase: str, epochs: int) -> list[float]:
    model.begin_phase(phase, data)
    return steps(model, data, epochs, learning_rate=0.01)


def test_the_first_phase_reads_both_ways_and_the_second_does_not():
    model, data = build()
    row, masked = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[False, True, False, False]])
    other = torch.tensor([[1, 2, 3, 9]])
    length = torch.tensor([4])
    for phase, sees in (("pretrain", True), ("finetune", False)):
        model.begin_phase(phase, data)
        model.eval()
        left, right = (model.read_masked(items, masked, length)[0, 1] for items in (row, other))
        assert torch.allclose(left, right, atol=1e-6) != sees


def test_a_masked_item_is_hidden():
    model, data = build()
    model.begin_phase("pretrain", data)
    model.eval()
    masked, length = torch.tensor([[False, True, False]]), torch.tensor([3])
    left, right = (model.read_masked(torch.tensor([[1, item, 3]]), masked, length) for item in (2, 7))
    assert torch.equal(left, right)


@pytest.mark.parametrize("task", ["mip", "map", "aap", "sp"])
def test_each_task_is_learned(task):
    alone = {f"{name}_weight": float(name == task) for name in ("mip", "map", "aap", "sp")}
    model, data = build(users=60, **alone, dropout=0.0)
    losses = train(model, data, "pretrain", 30)
    assert np.mean(losses[-30:]) < 0.75 * np.mean(losses[:5])


def test_attribute_tasks_by_hand_and_without_attributes():
    model, _ = build()
    states, items = torch.randn(3, 16), torch.tensor([0, 7, ITEMS])  # padding has none
    logits = states @ model.attribute_embedding.weight.T
    wanted = torch.zeros(3, 256)
    wanted[0, 0] = wanted[1, 1] = 1
    each = torch.nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
    assert model.attribute_loss(states, items).item() == pytest.approx(each[:2].mean().item(), rel=1e-5)
    without, data = build(features=False)
    assert np.isfinite(train(without, data, "pretrain", 1)).all()


def test_it_learns_the_ring_after_both_phases():
    model, data = build(dropout=0.1)
    train(model, data, "pretrain", 5)
    train(model, data, "finetune", 12)
    rows = Histories.from_lists([[(s + step) % ITEMS for step in range(1 + s % 6)] for s in range(ITEMS)])
    expected = (torch.arange(ITEMS) + torch.arange(ITEMS) % 6 + 1) % ITEMS
    assert (model.score(rows).argmax(1) == expected).float().mean() > 0.8


def test_a_run_has_both_phases_and_attributes_from_the_item_table(tmp_path):
    data = synthetic_interactions()
    items = data.items.with_columns(genres=pl.Series([f"g{i % 3}|all" for i in range(data.num_items)]))
    interactions = data.interactions
    table = pl.DataFrame(
        {
            "user": data.user_ids.gather(interactions.owners),
            "item": data.item_ids.gather(interactions.items),
            "time": interactions.times,
        }
    )
    items = items.rename({"item_id": "item"})
    data = read_interactions(table, user="user", item="item", time="time", items=items)
    config = SMALL | {"epochs": 2, "pretrain_epochs": 3}
    run = rd.train("s3rec", rd.split.leave_one_out(data), tmp_path / "run", config=config, seed=1)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["pretrain"] * 3 + ["finetune"] * 2
    assert [line.get("validation") is None for line in lines] == [True] * 3 + [False] * 2
