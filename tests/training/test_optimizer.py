"""Row-wise optimisers against their formulas, row by row, and what a step may touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rediffuse.training.checkpoint import load_training, restore_optimizer, save_training
from rediffuse.training.optimizer import ADAGRAD_RATE, Optimizer

RATE = 0.01


class Tiny(nn.Module):
    def __init__(self, kind: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(7, 3, sparse=kind is not None)
        self.linear = nn.Linear(3, 2)
        self.kind = kind

    def optimizer(self, weight_decay: float = 0.0) -> Optimizer:
        table = {"params": [self.table.weight]} | ({"rowwise": self.kind} if self.kind else {})
        return Optimizer([{"params": list(self.linear.parameters())}, table], RATE, weight_decay)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return (self.linear(self.table(rows)) - 1).square().sum()


BATCHES = [torch.tensor(rows) for rows in ([0, 2, 2], [2, 5], [1, 1, 1], [2, 0])]


def trained(kind: str | None, batches: list[torch.Tensor], weight_decay: float = 0.0) -> tuple[Tiny, Optimizer]:
    model = Tiny(kind)
    optimizer = model.optimizer(weight_decay)
    for rows in batches:
        model(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_by_hand(kind, weight_decay):
    model, by_hand = Tiny(kind), Tiny(None)
    optimizer = model.optimizer(weight_decay)
    beside = Optimizer([{"params": list(by_hand.linear.parameters())}], RATE, weight_decay)
    sums, first, second = np.zeros(7), np.zeros((7, 3)), np.zeros(7)
    for step, rows in enumerate(BATCHES, start=1):
        model(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
        by_hand(rows).backward()
        gradient = by_hand.table.weight.grad.double().numpy().copy()
        table = by_hand.table.weight.detach().double().numpy().copy()
        for row in set(rows.tolist()):
            square = np.mean(gradient[row] ** 2)
            if kind == "adagrad":
                sums[row] += square
                change = ADAGRAD_RATE * (gradient[row] / (np.sqrt(sums[row]) + 1e-8) + weight_decay * table[row])
            else:
                first[row] = 0.9 * first[row] + 0.1 * gradient[row]
                second[row] = 0.999 * second[row] + 0.001 * square
                scale = np.sqrt(second[row] / (1 - 0.999**step)) + 1e-8
                change = first[row] / (1 - 0.9**step) / scale + weight_decay * table[row]
            table[row] -= RATE * change
        by_hand.table.weight.data = torch.from_numpy(table).float()
        beside.step()
        by_hand.zero_grad()
        torch.testing.assert_close(model.table.weight, by_hand.table.weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.linear.weight, by_hand.linear.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_only_rows_that_were_read_change(kind):
    start = Tiny(kind).table.weight.detach().clone()
    model, optimizer = trained(kind, BATCHES, weight_decay=0.5)
    changed = (model.table.weight != start).any(1)
    assert changed.tolist() == [True, True, True, False, False, True, False]
    moments = optimizer.state[model.table.weight]["row_moment"]
    assert (moments > 0).tolist() == changed.tolist()
    assert moments.shape == (7,)


def test_adam_of_one_column_is_torchs_sparse_adam():
    torch.manual_seed(0)
    ours, theirs = (nn.Embedding(6, 1, sparse=True) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    one = Optimizer([{"params": [ours.weight], "rowwise": "adam"}], RATE, 0.0)
    other = torch.optim.SparseAdam(theirs.parameters(), lr=RATE)
    for rows in BATCHES:
        for table, optimizer in ((ours, one), (theirs, other)):
            F.softplus(table(rows)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_a_checkpoint_goes_on_to_the_same_weights(kind, tmp_path):
    whole, _ = trained(kind, BATCHES)
    model, optimizer = trained(kind, BATCHES[:2])
    save_training(tmp_path / "last.safetensors", model, optimizer, {})
    again = Tiny(kind)
    state, _ = load_training(tmp_path / "last.safetensors", again)
    optimizer = again.optimizer()
    restore_optimizer(optimizer, state)
    for rows in BATCHES[2:]:
        again(rows).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(again.table.weight, whole.table.weight)
    assert torch.equal(again.linear.weight, whole.linear.weight)
