"""Trains one model in all processes of a launch; one of them may be killed on the way."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

import rediffuse as rd
from rediffuse import distributed
from rediffuse.errors import RediffuseError
from rediffuse.testing import synthetic_interactions
from rediffuse.training import loop

OPTIONS = {
    "embedding_size": 16,
    "batch_size": 64,
    "epochs": 4,
    "blocks": 1,
    "precision": "fp32",
    "timestep_sampler": "lossaware",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--kill", type=int, help="kill this rank after 7 steps")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--track")
    arguments = parser.parse_args()
    loop.CHECKPOINT_SECONDS = 0.0  # a checkpoint after every step
    original = loop.Trainer._step
    steps_left = 7

    def step(*args: Any) -> float:
        global steps_left
        steps_left -= 1
        if steps_left < 0 and distributed.rank() == arguments.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    loop.Trainer._step = step
    split = rd.split.leave_one_out(synthetic_interactions())
    out, resume, track = arguments.out, arguments.resume, arguments.track
    try:
        rd.train("diffurec", split, out, config=OPTIONS, seed=3, resume=resume, tracker=track)
    except RediffuseError as error:
        sys.exit(f"Error: {error}")
    sys.stdout.write(f"{distributed.rank()} of {distributed.world_size()}\n")
