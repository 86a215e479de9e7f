"""Train, select on validation, evaluate once on the test part; append one JSON line per run.

    REDIFFUSE_DATA=... python benchmarks/quality.py --data amazon-beauty --split given --epochs 25 \\
        --models popularity diffurec twin sasrec --seeds 0 --out benchmarks/results/quality.jsonl
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import rediffuse as rd
from rediffuse.data.zoo import fetch
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.training import read_run
from rediffuse.training.environment import environment

# What is compared: a name for the table, the model, and its options beyond the default.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "popularity": ("popularity", {}),
    "diffurec": ("diffurec", {}),
    "twin": ("diffurec", {"diffusion": False}),
    "diffurec-prefix": ("diffurec", {"form": "prefix", "batch_size": 512}),
    "diffurec-norepeat": ("diffurec", {"repeat_bias": False}),
    "diffurec-lossaware": ("diffurec", {"timesteps": "lossaware"}),
    "sasrec": ("sasrec", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="default")
    parser.add_argument("--models", nargs="+", default=["popularity", "diffurec", "twin", "sasrec"], choices=VARIANTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, help="of training, per run")
    parser.add_argument("--epochs", type=int, default=25, help="at most, per run")
    parser.add_argument("--runs", type=Path, default=Path("runs/quality"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/quality.jsonl"))
    arguments = parser.parse_args()
    dataset = fetch(arguments.data)
    split = rd.split.by_name(arguments.split, dataset)
    task = split.task("test")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for variant in arguments.models:
            model, own = VARIANTS[variant]
            options = own | {"epochs": arguments.epochs}
            folder = arguments.runs / f"{arguments.data}-{split.name}-{variant}-{seed}"
            resume = (folder / "checkpoints").exists()
            run = rd.train(
                model, split, folder, config=options, seed=seed, max_minutes=arguments.minutes, resume=resume
            )
            trained = read_run(folder).model
            began = time.perf_counter()
            result = evaluate_task(model_scores(trained, task), task, num_items=dataset.num_items)
            seconds = time.perf_counter() - began
            line = {
                "data": arguments.data,
                "split": split.name,
                "variant": variant,
                "seed": seed,
                "minutes": round(run.minutes, 2),
                "best_epoch": run.config["training"]["best_epoch"],
                "resolved": run.config["resolved"],
                "validation": run.validation,
                "test": result.metrics,
                "counts": result.counts,
                "users_per_second": round(result.counts["users"] / seconds),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "environment": environment(),
            }
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            kept, filtered = result.metrics["all"], result.metrics["unseen"]
            print(
                f"{arguments.data} {split.name} {variant} seed {seed}: {run.minutes:.1f} min, "
                f"epoch {line['best_epoch']}, HR@10/NDCG@10 seen kept {100 * kept['hr@10']:.2f}/"
                f"{100 * kept['ndcg@10']:.2f}, filtered {100 * filtered['hr@10']:.2f}/{100 * filtered['ndcg@10']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
