"""Trains and evaluates a model on a split with successive targets, some of them without a history."""

from __future__ import annotations

import sys

import polars as pl

import rediffuse as rd

ITEMS = 15


def interactions():
    """Users who begin one after the other and go round a ring of items."""
    rows = [(user, (3 * user + n) % ITEMS, 100 * user + 60 * n) for user in range(60) for n in range(6)]
    frame = pl.DataFrame(rows, ["user_id", "item_id", "time"], orient="row")
    return rd.read_interactions(frame, time="time")


if __name__ == "__main__":
    out, evaluated = sys.argv[1:]
    data = interactions()
    split = rd.split.global_time(data, 0.8, 0.8, targets="successive")
    options = {"embedding_size": 16, "batch_size": 16, "epochs": 4, "blocks": 1, "precision": "fp32", "dropout": 0.0}
    rd.train("sasrec", split, out, config=options, seed=1)
    rd.evaluate(evaluated, data)
