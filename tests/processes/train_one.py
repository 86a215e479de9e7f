"""Trains a model in as many processes as it is started in; process 1 may die on the way, as by kill -9."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

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
    whole = loop.Trainer._step
    left = dies_at if dies_at >= 0 and not processes.restarted() else sys.maxsize

    def step(*args: Any) -> float:
        global left
        left -= processes.index()
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*args)

    loop.Trainer._step = step
    try:
        rd.train("diffurec", rd.split.leave_one_out(walks()), out, config=OPTIONS, seed=3, resume=resume)
    except RediffuseError as error:
        sys.exit(f"Error: {error}")
