"""Train on a table of interactions, then recommend to a user who was not in it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

import rediffuse as rd


def main() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(40, size=200)
    sequences = (first[:, None] + np.arange(8)) % 40  # every user buys the products in the same order
    table = pl.DataFrame(
        {
            "customer": [f"c{row}" for row in range(200) for _ in range(8)],
            "product": [f"p{item}" for item in sequences.ravel()],
            "when": np.tile(np.arange(8) * 3600, 200) + np.repeat(np.arange(200), 8),
        }
    )
    data = rd.read_interactions(table, user="customer", item="product", time="when")
    split = rd.split.leave_one_out(data)
    with tempfile.TemporaryDirectory() as folder:
        run = rd.train("diffurec", split, out=Path(folder) / "run", config={"epochs": 20, "batch_size": 128})
        print("validation:", {name: round(value, 3) for name, value in (run.validation or {}).items()})
        recommender = rd.Recommender.load(run.path)
        print(recommender.recommend(histories=[["p10", "p11", "p12"]], k=3, samples=4))


if __name__ == "__main__":
    main()
