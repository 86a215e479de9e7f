"""Compare the speed of SASRec with that of RecTools, one after the other on one machine: processor seconds.

    REDIFFUSE_DATA=... OMP_NUM_THREADS=1 python -m benchmarks.measure.rectools_sasrec --rectools PYTHON

PYTHON is an interpreter with ``rectools[torch]`` installed, best in an environment of its own. Both models have 2
blocks, d = 128, windows of 50, the full softmax and fp32. Both run some steps, which are scaled to an epoch, and then
recommend ten items to each of 2,000 users, seen items filtered. Processor time is counted, so that other work on the
machine matters less.

An epoch is not the same work on both sides. RecTools pads all histories to 50 and reads the last 51 interactions of
each; here batches have the length of their longest history, and windows tile the whole history. So targets per second
are given as well: a target is an item that the loss predicts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS, WARM_UP = 40, 5
BATCH, LENGTH, SIZE = 128, 50, 128  # histories per batch is RecTools' default
USERS, K = 2_000, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file; default: results/rectools_sasrec.json")
    parser.add_argument("--rectools", help="interpreter with rectools[torch]")
    parser.add_argument("--data", nargs="+", default=["amazon-beauty", "ml-1m"])
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)  # set where this runs under that interpreter
    arguments = parser.parse_args()
    if arguments.table:  # RecTools' interpreter, which has no rediffuse
        print(json.dumps(theirs(arguments.table)))
        return
    from benchmarks.common import RESULTS, write_result
    from rediffuse.readers.public_datasets import public_dataset

    found = {}
    for name in arguments.data:
        data = public_dataset(name)
        train = training_histories(data)
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "train.csv"
            lines = [f"{u},{i},{n}" for n, (u, i) in enumerate(zip(train.owners, train.items, strict=True))]
            table.write_text("\n".join(["user_id,item_id,order", *lines]), encoding="utf-8")
            command = [arguments.rectools, __file__, "--table", str(table)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        rows = {"ours": ours(data, train), "rectools": json.loads(done.stdout.splitlines()[-1])}
        ratios = {what: round(rows["ours"][what] / rows["rectools"][what], 1) for what in ("targets/s", "users/s")}
        ratios["epoch"] = round(rows["rectools"]["epoch_seconds"] / rows["ours"]["epoch_seconds"], 1)
        found[name] = rows | {"ratios": ratios}
        print(json.dumps({name: found[name]}, indent=2), flush=True)
    write_result(arguments.out or RESULTS / "rectools_sasrec.json", found, precision="fp32", device="cpu")


def training_histories(data: Any) -> Any:
    from rediffuse.data import split

    name = "given" if "given" in data.given else "leave_one_out"
    return getattr(split, name)(data).training_view().train


def ours(data: Any, train: Any) -> dict[str, Any]:
    """Measure an epoch of Rediffuse's SASRec and ranking with it, after a warm-up."""
    import numpy as np
    import torch

    from rediffuse.memory import keep_freed_memory
    from rediffuse.models import model_class
    from rediffuse.models.base import TrainingData
    from rediffuse.models.sampling import Sampling
    from rediffuse.recommender.ranker import Ranker, RankingQuery

    kind = model_class("sasrec")
    model = kind(kind.Config.build(None, {"max_length": LENGTH, "precision": "fp32"}), data.num_items)
    known = TrainingData(train, data.num_users, data.num_items, np.bincount(train.items, minlength=data.num_items))
    model.fit(known)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches = model.batches(known, np.random.default_rng(0))
    targets = 0
    with keep_freed_memory():
        for step in range(WARM_UP + STEPS):
            if step == WARM_UP:
                began, targets = time.process_time(), 0
            batch = batches.get(step)
            targets += len(batch.targets)
            loss = model.loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.process_time() - began
        model.eval()
        model.prepare()
        ranker = Ranker(model, None, None)
        users = np.arange(USERS)
        began = time.process_time()
        for start in range(0, USERS, 512):
            some = users[start : start + 512]
            queries = [RankingQuery(K, np.empty(0, np.int64))] * len(some)
            ranker.rank(train.take(some), some, queries, Sampling())
        ranking = time.process_time() - began
    return _row(seconds, targets, len(batches), ranking)


def theirs(table: Path) -> dict[str, Any]:
    """Measure an epoch of RecTools' SASRec under its own trainer, and ranking with it."""
    import pandas as pd
    import pytorch_lightning as lightning
    import rectools
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    times: list[float] = []  # RecTools copies its trainer, and callbacks with it
    counts: list[int] = []

    class Clock(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            times.append(time.process_time())
            counts.append(int((batch["y"] != 0).sum()))

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=1, limit_train_batches=STEPS + WARM_UP, callbacks=[Clock()], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, precision="32-true",
        )  # fmt: skip

    frame = pd.read_csv(table)
    frame["weight"], frame["datetime"] = 1.0, pd.to_datetime(frame.pop("order"), unit="s")
    data = Dataset.construct(frame)
    model = SASRecModel(
        n_blocks=2, n_factors=SIZE, session_max_len=LENGTH, loss="softmax", batch_size=BATCH, dataloader_num_workers=0,
        get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(data)
    steps = -(-frame["user_id"].nunique() // BATCH)
    users = frame["user_id"].unique()[:USERS]
    began = time.process_time()
    model.recommend(users, data, k=K, filter_viewed=True)
    ranking = time.process_time() - began
    seconds = times[-1] - times[WARM_UP - 1]
    return _row(seconds, sum(counts[WARM_UP:]), steps, ranking) | {"version": rectools.__version__}


def _row(seconds: float, targets: int, steps: int, ranking: float) -> dict[str, Any]:
    return {
        "epoch_seconds": round(seconds / STEPS * steps, 1),
        "steps": steps,
        "targets per step": round(targets / STEPS, 1),
        "targets/s": round(targets / seconds, 1),
        "users/s": round(USERS / ranking, 1),
    }


if __name__ == "__main__":
    main()
