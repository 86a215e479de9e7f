"""Trains models with a sharded item table in all processes of a launch, or in one process with a whole one.

`main` trains all `FITS`, and two processes compare ranks over shards with those of one. With ``--kill``, one model is
trained until a process kills itself; with ``--resume`` it is continued.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import rediffuse as rd
from rediffuse import distributed
from rediffuse.data.histories import Histories
from rediffuse.engines import sharded
from rediffuse.errors import RediffuseError
from rediffuse.evaluation.rank import rank_task
from rediffuse.evaluation.shards import rank_task_over_shards
from rediffuse.files import atomic_write_text
from rediffuse.losses import Draws
from rediffuse.models import sequence
from rediffuse.testing import synthetic_interactions
from rediffuse.training import loop

# Small, and without random draws: then the losses must be those of one process.
SMALL = {"embedding_size": 16, "batch_size": 59, "epochs": 3, "precision": "fp32", "dropout": 0.0}
SHARDED = SMALL | {"loss": "sampled_softmax", "item_optimizer": "rowwise_adagrad", "negatives": 32}
# Name of the run -> model and options.
FITS: dict[str, tuple[str, dict[str, Any]]] = {
    "sasrec": ("sasrec", {"blocks": 1, "weight_decay": 0.1, "warmup": 5, "learning_rate": 0.01}),
    "gbce": ("sasrec", {"blocks": 1, "loss": "gbce"}),
    "gru4rec": ("gru4rec", {"temperature": None, "loss": "uniform_softmax"}),
    "heatrec": ("heatrec", {"prior": "none", "diffusion": False, "learning_rate_schedule": "cosine"}),
    "diffurec": ("diffurec", {"blocks": 1, "diffusion": False, "embedding_dropout": 0.0}),
    # Processes draw noise of their own, or compare targets with those of their part of the batch.
    "diffusion": ("diffurec", {"blocks": 1, "epochs": 1}),
    "in_batch": ("gru4rec", {"loss": "in_batch"}),
}
UNLIKE_ONE_PROCESS = ("diffusion", "in_batch")


def main(folder: Path, several: bool) -> None:
    split = rd.split.leave_one_out(synthetic_interactions())
    Draws.draw = lambda self, count: torch.arange(count) % len(self.sums)
    drawn = sequence.draw_negatives

    def draw(model: Any, targets: int, device: torch.device) -> torch.Tensor | None:
        found = drawn(model, targets, device)  # of each target its own: in two processes the same as in one
        return found if found is None or found.dim() == 1 else torch.arange(found.shape[1]).repeat(targets, 1)

    sequence.draw_negatives = draw
    for name, (model, options) in FITS.items():
        train = sharded.train if several else rd.train
        train(model, split, folder / name, config=SHARDED | options, seed=3)
    if several:
        atomic_write_text(folder / f"ranks{distributed.rank()}.json", json.dumps(rank_differences()))


class Users:
    """Users of a task with random histories and true items; some have none of either in a part of the catalogue."""

    def __init__(self, users: int, num_items: int) -> None:
        rng = np.random.default_rng(1)
        self.name, self.users = "test", np.arange(users)
        self.histories, self.truth = (
            Histories(
                np.arange(users + 1) * width,
                np.concatenate([rng.choice(num_items, width, replace=False) for _ in range(users)]).astype(np.int32),
            )
            for width in (5, 3)
        )
        self.seen, self.popularity = None, np.ones(num_items, dtype=np.int64)


def rank_differences() -> list[str]:
    """What differs between the ranking by one process and that over shards: nothing."""
    found = []
    for levels, num_items, k in ((3, 41, 20), (10_000, 41, 50), (2, 9, 4)):  # few levels: nearly all scores are tied
        task = Users(23, num_items)
        scores = torch.randint(levels, (23, num_items), generator=torch.Generator().manual_seed(levels)).float()
        scores[::4, ::3] = -torch.inf
        first = distributed.rank() * -(-(num_items + 1) // 2)
        items = range(first, min(first + -(-(num_items + 1) // 2), num_items))
        whole = rank_task(lambda rows, start: scores[start : start + len(rows)].clone(), task, num_items=num_items, k=k)  # noqa: B023
        parts = rank_task_over_shards(
            lambda rows, start: scores[start : start + len(rows), items.start : items.stop].clone(),  # noqa: B023
            task,
            num_items=num_items,
            items=items,
            k=k,
            user_block=7,
        )
        for field in ("ranks", "items", "scores"):
            for policy, expected in getattr(whole, field).items():
                if not np.array_equal(getattr(parts, field)[policy], expected):
                    found.append(f"{field} {policy} of {levels} levels")
    return found


def killed(out: str, rank: int | None, resume: bool) -> None:
    """Train one model with a checkpoint after every step; the process ``rank`` kills itself in the second epoch."""
    loop.CHECKPOINT_SECONDS = 0.0
    original, steps_left = loop.Trainer._step, 10

    def step(*arguments: Any) -> float:
        nonlocal steps_left
        steps_left -= 1
        if steps_left < 0 and distributed.rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)

    loop.Trainer._step = step
    options = SHARDED | {"blocks": 1, "dropout": 0.2, "weight_decay": 0.1, "warmup": 12}
    split = rd.split.leave_one_out(synthetic_interactions())
    try:
        sharded.train("sasrec", split, out, config=options, seed=3, resume=resume)
    except RediffuseError as error:
        sys.exit(f"Error: {error}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--kill", type=int, help="kill this rank")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--one-run", action="store_true")
    arguments = parser.parse_args()
    if arguments.one_run:
        killed(arguments.out, arguments.kill, arguments.resume)
    else:
        main(arguments.out, "RANK" in os.environ)
