"""Row-wise Adagrad against its formula, row by row, and which rows a step changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rediffuse.training.checkpoint import load_training, restore_optimizer, save_training
from rediffuse.training.optimizer import ADAGRAD_RATE, Optimizer

RATE = 0.01


class Tiny(nn.Module):
    def __init__(self, sparse: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 3, sparse=sparse)
        self.linear = nn.Linear(3, 2)

    def optimizer(self, weight_decay: float = 0.0) -> Optimizer:
        table = {"params": [self.table.weight], "rowwise": True}
        return Optimizer([{"params": list(self.linear.parameters())}, table], RATE, weight_decay)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.linear(self.table(rows)) - 1).square().sum()


BATCHES = [torch.tensor(rows) for rows in ([0, 2, 2], [2, 5], [1, 1, 1], [2, 0])]


def trained(batches: list[torch.Tensor], weight_decay: float = 0.0) -> tuple[Tiny, Optimizer]:
    model = Tiny()
    optimizer = model.optimizer(weight_decay)
    for rows in batches:
        model(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_by_hand(weight_decay):
    model, by_hand = Tiny(), Tiny(sparse=False)
    optimizer = model.optimizer(weight_decay)
    beside = Optimizer([{"params": list(by_hand.linear.parameters())}], RATE, weight_decay)
    sums = np.zeros(7)
    for rows in BATCHES:
        model(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
        by_hand(rows).backward()
        gradient = by_hand.table.weight.grad.double().numpy().copy()
        table = by_hand.table.weight.detach().double().numpy().copy()
        for row in set(rows.tolist()):
            sums[row] += np.mean(gradient[row] ** 2)
            change = gradient[row] / (np.sqrt(sums[row]) + 1e-8) + weight_decay * table[row]
            table[row] -= RATE * ADAGRAD_RATE * change
        by_hand.table.weight.data = torch.from_numpy(table).float()
        beside.step()
        by_hand.zero_grad()
        torch.testing.assert_close(model.table.weight, by_hand.table.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.linear.weight, by_hand.linear.weight, rtol=1e-5, atol=1e-6)


def test_only_rows_that_were_read_change():
    start = Tiny().table.weight.detach().clone()
    model, optimizer = trained(BATCHES, weight_decay=0.5)
    changed = (model.table.weight != start).any(1)
    assert changed.tolist() == [True, True, True, False, False, True, False]
    squares = optimizer.state[model.table.weight]["row_squares"]
    assert (squares > 0).tolist() == changed.tolist()
    assert squares.shape == (7,)


def test_a_checkpoint_goes_on_to_the_same_weights(tmp_path):
    whole, _ = trained(BATCHES)
    model, optimizer = trained(BATCHES[:2])
    save_training(tmp_path / "last.safetensors", model, optimizer, {})
    again = Tiny()
    saved = load_training(tmp_path / "last.safetensors", again)
    optimizer = again.optimizer()
    restore_optimizer(optimizer, saved.optimizer)
    for rows in BATCHES[2:]:
        again(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(again.table.weight, whole.table.weight)
    assert torch.equal(again.linear.weight, whole.linear.weight)
