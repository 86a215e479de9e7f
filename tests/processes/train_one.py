"""Trains a model in as many processes as it is started in; process 1 may die on the way, as by kill -9."""

from __future__ import annotations

import sys

from tests.dying import countdown
from tests.synthetic import walks

import rediffuse as rd
from rediffuse import processes
from rediffuse.errors import RediffuseError
from rediffuse.training import loop

OPTIONS = {
    "embedding_size": 16,
    "batch_size": 64,
    "epochs": 4,
    "blocks": 1,
    "precision": "fp32",
    "timesteps": "lossaware",
}

if __name__ == "__main__":
    out, dies_at, resume = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["--resume"]
    loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step
    dying = countdown(dies_at)(loop.Trainer._step)
    whole = loop.Trainer._step
    may_die = dies_at >= 0 and not processes.restarted()
    loop.Trainer._step = lambda *args: (dying if may_die and processes.index() == 1 else whole)(*args)
    try:
        rd.train("diffurec", rd.split.leave_one_out(walks()), out, config=OPTIONS, seed=3, resume=resume)
    except RediffuseError as error:
        sys.exit(f"Error: {error}")
