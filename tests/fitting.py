"""Models trained without the loop: what tests of their mathematics need, and nothing that is saved."""

from __future__ import annotations

import numpy as np
import torch

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.data.histories import Histories
from rediffuse.models.base import Model, TrainingData
from rediffuse.training.optimizer import Optimizer


def training_data(rows: Histories, num_items: int) -> TrainingData:
    return TrainingData(rows, len(rows), num_items, np.bincount(rows.items, minlength=num_items))


def steps(model: Model, data: TrainingData, epochs: int, learning_rate: float) -> list[float]:
    """The loss of each step on what the model's present phase trains; leaves it in evaluation mode."""
    optimizer = Optimizer(model.parameter_groups(), learning_rate, weight_decay=0.0)
    model.train()
    losses = []
    for epoch in range(epochs):
        batches = model.batches(data, np.random.default_rng(epoch))
        for index in range(len(batches)):
            loss = model.loss(batches.get(index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


def two_histories(padding: int) -> SequenceBatch:
    """Histories 1 2 3 4 and 5 6, in the causal form."""
    return SequenceBatch(
        torch.tensor([[1, 2, 3], [5, padding, padding]]),
        torch.tensor([3, 1]),
        torch.tensor([0, 0, 0, 1]),
        torch.tensor([0, 1, 2, 0]),
        torch.tensor([2, 3, 4, 6]),
        torch.tensor([1, 2, 3, 5]),
    )
