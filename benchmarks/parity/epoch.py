"""One epoch of our training, with its batches, its losses and all that it draws, for a released program to repeat.

In double precision: Adam divides by the size of a gradient, so it makes steps of a whole learning rate out of the
rounding errors of weights whose gradient is zero, such as the biases of attention's keys.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

import rediffuse as rd
from benchmarks.parity.released import gradient_gap, replaced
from rediffuse.batching.rows import RowBatch
from rediffuse.config import ModelConfig
from rediffuse.data.split import Split
from rediffuse.models.base import Model
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.training.loop import Trainer
from rediffuse.training.train import make_trainer

DAY = 86_400
# torch's functions by which our models draw in a training step.
DRAWS = ("randn_like", "randint", "multinomial")


@dataclass
class Epoch:
    """Steps of our training: of each its batch, its loss, and what it drew, by the name of torch's function."""

    batches: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    draws: list[dict[str, list[Tensor]]] = field(default_factory=list)


@contextmanager
def in_double() -> Iterator[None]:
    """New tensors have double precision, also those for which single precision is asked."""
    single = torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        with replaced(torch.Tensor, float=torch.Tensor.double), replaced(torch, float32=torch.float64):
            yield
    finally:
        torch.set_default_dtype(single)


def first_users(name: str, users: int) -> Split:
    """Leave-one-out of the first users of a public data set, with the items that they interacted with.

    Times are whole days, as in PDRec's data: its program holds them in single precision, in steps of a minute or two.
    """
    data = public_dataset(name)
    rows, chosen = data.interactions, data.interactions.owners < users
    assert rows.times is not None
    columns = {
        "user_id": data.user_ids.gather(rows.owners[chosen]),
        "item_id": data.item_ids.gather(rows.items[chosen]),
    }
    table = pl.DataFrame(columns | {"timestamp": rows.times[chosen] // DAY * DAY})
    return rd.split.leave_one_out(rd.read_interactions(table, time="timestamp"))


def new_trainer(kind: type[Model], options: ModelConfig, split: Split) -> Trainer:
    """The trainer of a new model; nothing of it is written."""
    folder = Path(tempfile.gettempdir())
    view, ids = split.training_view(), split.dataset.user_ids
    trainer = make_trainer(kind, options, view, folder, seed=0, user_ids=ids, device="cpu")
    trainer.model.fit(trainer.data)
    return trainer


def train_epoch(trainer: Trainer, phase: str, begun: tuple[Any, ...]) -> Epoch:
    """Train the first epoch of a phase by the steps of our loop; ``begun`` is what `Trainer.begin_phase` gave."""
    model, epoch = trainer.model, Epoch()
    _, _, network, stepper = begun
    batches, whole_loss = trainer.batches(phase, 0), model.loss

    def loss(batch: Any) -> Tensor:
        drawn: dict[str, list[Tensor]] = {name: [] for name in DRAWS}

        def kept(name: str) -> Callable[..., Tensor]:
            draw = getattr(torch, name)
            return lambda *words, **options: drawn[name].append(draw(*words, **options)) or drawn[name][-1]

        if isinstance(batch, RowBatch):
            batch = replace(batch, values=batch.values.double())
        with replaced(torch, **{name: kept(name) for name in DRAWS}):
            value = whole_loss(batch)
        epoch.batches.append(batch)
        epoch.losses.append(float(value.detach()))
        epoch.draws.append(drawn)
        return value

    model.train()
    with replaced(model, loss=loss):
        for index in range(len(batches)):
            trainer.try_step(network, stepper, batches, phase, index)
    return epoch


def compare_epoch(
    epoch: Epoch, losses: list[float], weights: Iterable[tuple[Tensor, Tensor]], before: Iterable[Tensor]
) -> dict[str, float]:
    """Largest relative differences of the losses of the steps, and of what the epoch changed in the weights.

    Args:
        epoch: ours.
        losses: of the steps of the released program.
        weights: our weights and the released ones, at the end.
        before: our weights at the beginning, in the same order.
    """
    ours, theirs = torch.tensor(epoch.losses), torch.tensor(losses)
    if ours.shape != theirs.shape:
        raise SystemExit(f"We trained {len(ours)} steps, and the released program {len(theirs)}.")
    print(f"{len(ours)} steps; loss {epoch.losses[0]:.4f} at the first, {epoch.losses[-1]:.4f} at the last")
    changes = [
        (mine - start, their.reshape(mine.shape) - start) for (mine, their), start in zip(weights, before, strict=True)
    ]
    mine, their = (list(change) for change in zip(*changes, strict=True))
    return {
        "one epoch, loss of a step": float(((ours - theirs) / theirs).abs().max()),
        "one epoch, change of the weights": gradient_gap(mine, their),
    }
