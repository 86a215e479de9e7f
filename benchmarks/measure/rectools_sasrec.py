"""Compare the speed of SASRec with that of RecTools, one after the other on one machine: processor seconds per epoch.

    REDIFFUSE_DATA=... OMP_NUM_THREADS=1 python -m benchmarks.measure.rectools_sasrec --rectools PYTHON

PYTHON is an interpreter with ``rectools[torch]`` installed, best in an environment of its own. The data are Amazon
Beauty with its given split; both models have 2 blocks, d = 128 and the full softmax. Both run some steps, which are
scaled to an epoch. Processor time is counted, so that other work on the machine matters less.
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

STEPS = 40
BATCH = 128  # histories, RecTools' default


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file; default: results/rectools_sasrec.json")
    parser.add_argument("--rectools", help="interpreter with rectools[torch]")
    parser.add_argument("--table", type=Path, help=argparse.SUPPRESS)  # set where this runs under that interpreter
    arguments = parser.parse_args()
    if arguments.table:  # RecTools' interpreter, which has no rediffuse
        print(json.dumps(theirs(arguments.table)))
        return
    from benchmarks.common import RESULTS, write_result
    from rediffuse.readers.public_datasets import public_dataset

    data = public_dataset("amazon-beauty")
    found = {"ours": ours(data)}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "train.csv"
        train = training_histories(data)
        lines = [f"{u},{i},{n}" for n, (u, i) in enumerate(zip(train.owners, train.items, strict=True))]
        table.write_text("\n".join(["user_id,item_id,order", *lines]), encoding="utf-8")
        command = [arguments.rectools, __file__, "--table", str(table)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        found["rectools"] = json.loads(done.stdout.splitlines()[-1])
    found["ratio"] = round(found["rectools"]["epoch_seconds"] / found["ours"]["epoch_seconds"], 1)
    print(json.dumps(found, indent=2))
    out = arguments.out or RESULTS / "rectools_sasrec.json"
    write_result(out, found, precision=found["ours"]["precision"], device="cpu")


def training_histories(data: Any) -> Any:
    from rediffuse.data import split

    return split.given(data).training_view().train


def ours(data: Any) -> dict[str, Any]:
    """Measure an epoch of Rediffuse's default SASRec, after a warm-up."""
    import numpy as np
    import torch

    from rediffuse.memory import keep_freed_memory
    from rediffuse.models import model_class
    from rediffuse.models.base import TrainingData
    from rediffuse.training.precision import autocast, resolve_precision

    train, kind = training_histories(data), model_class("sasrec")
    model = kind(kind.Config.build(), data.num_items)
    known = TrainingData(train, data.num_users, data.num_items, np.bincount(train.items, minlength=data.num_items))
    model.fit(known)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    batches, device = model.batches(known, np.random.default_rng(0)), torch.device("cpu")
    precision = resolve_precision("auto", device)
    with keep_freed_memory():
        for step in range(10 + STEPS):
            if step == 10:
                began = time.process_time()
            with autocast(precision, device):
                loss = model.loss(batches.get(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.process_time() - began
    return {"epoch_seconds": round(seconds / STEPS * len(batches), 1), "steps": len(batches), "precision": precision}


def theirs(table: Path) -> dict[str, Any]:
    """Measure an epoch of RecTools' SASRec under its own trainer."""
    import pandas as pd
    import pytorch_lightning as lightning
    import rectools
    from rectools.dataset import Dataset
    from rectools.models import SASRecModel

    times: list[float] = []  # RecTools copies its trainer, and callbacks with it

    class Clock(lightning.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            times.append(time.process_time())

    def trainer() -> lightning.Trainer:
        return lightning.Trainer(
            max_epochs=1, limit_train_batches=STEPS + 5, callbacks=[Clock()], accelerator="cpu", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip

    frame = pd.read_csv(table)
    frame["weight"], frame["datetime"] = 1.0, pd.to_datetime(frame.pop("order"), unit="s")
    model = SASRecModel(
        n_blocks=2, n_factors=128, session_max_len=50, loss="softmax", batch_size=BATCH, dataloader_num_workers=0,
        get_trainer_func=trainer,
    )  # fmt: skip
    model.fit(Dataset.construct(frame))
    steps = -(-frame["user_id"].nunique() // BATCH)
    per_step = (times[-1] - times[4]) / (len(times) - 5)
    return {"epoch_seconds": round(per_step * steps, 1), "steps": steps, "version": rectools.__version__}


if __name__ == "__main__":
    main()
