"""The search for a trained diffusion that is above its ablation: trials, measured on the validation subset alone.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.search --data amazon-beauty --seeds 0 1
    python -m benchmarks.tables.search --data amazon-beauty --report

Every trial has the same most epochs and the same early stopping, and so has the ablation that it is compared with. A
finished trial is a line of the result file, and is not run again. ``--report`` prints means over seeds, best first.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import rediffuse as rd
from benchmarks.common import RESULTS, append_result
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_log

METRIC, HITS = "ndcg@10/unseen", "hr@10/unseen"
EPOCHS, PATIENCE = 80, 5
# name: (model, options)
TRIALS: dict[str, tuple[str, dict[str, Any]]] = {
    "gru4rec": ("gru4rec", {}),
    "gru4rec, t = 0.1": ("gru4rec", {"history_noise": 0.1}),
    "gru4rec, t = 0.25": ("gru4rec", {"history_noise": 0.25}),
    "gru4rec, t = 0.5": ("gru4rec", {"history_noise": 0.5}),
    "gru4rec, t = 1": ("gru4rec", {"history_noise": 1.0}),
    "gru4rec, t = 0.25, uniform graph": ("gru4rec", {"history_noise": 0.25, "noise_graph": "uniform"}),
    "gru4rec, dropout 0.2": ("gru4rec", {"dropout": 0.2}),
    "gru4rec, dropout 0.5": ("gru4rec", {"dropout": 0.5}),
    "sasrec": ("sasrec", {}),
    "sasrec, t = 0.25": ("sasrec", {"history_noise": 0.25}),
    "diffurec, no diffusion": ("diffurec", {"diffusion": False}),
    "diffurec, no diffusion, t = 0.25": ("diffurec", {"diffusion": False, "history_noise": 0.25}),
    **{
        f"diffurec, lambda = {weight}": ("diffurec", {"lambda_uncertainty": weight})
        for weight in (0.001, 0.01, 0.1, 1.0)
    },
    "diffurec, lambda = 0.1, self-conditioning": ("diffurec", {"lambda_uncertainty": 0.1, "self_conditioning": True}),
    "diffurec, lambda = 0.1, guidance 0.5": (
        "diffurec",
        {"lambda_uncertainty": 0.1, "history_dropout": 0.1, "guidance": 0.5},
    ),
    "diffurec, lambda = 0.01, ema": ("diffurec", {"lambda_uncertainty": 0.01, "ema": 0.999}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="amazon-beauty")
    parser.add_argument("--split", default="given")
    parser.add_argument("--trials", nargs="+", choices=TRIALS, default=list(TRIALS), metavar="TRIAL")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--runs", type=Path, default=Path("runs/search"))
    parser.add_argument("--out", type=Path, help="result file; default: results/search-DATA.jsonl")
    parser.add_argument("--report", action="store_true", help="print what is there")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"search-{arguments.data}.jsonl"
    if not arguments.report:
        split = rd.split.by_name(arguments.split, public_dataset(arguments.data))
        for seed in arguments.seeds:
            for name in arguments.trials:
                if not any((row["trial"], row["seed"]) == (name, seed) for row in done(out)):
                    found = trial(name, split, arguments.runs / f"{name}-{seed}".replace(" ", ""), seed)
                    append_result(out, found, precision=found.pop("precision"))
    print(table(done(out)))


def done(out: Path) -> list[dict[str, Any]]:
    """The trials in a result file."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def trial(name: str, split: rd.data.split.Split, folder: Path, seed: int) -> dict[str, Any]:
    """Train once; the prior is put beside the network at the end and changes nothing before."""
    model, options = TRIALS[name]
    shutil.rmtree(folder, ignore_errors=True)
    config = options | {"metric": METRIC, "epochs": EPOCHS, "patience": PATIENCE, "prior": "head"}
    run = rd.train(model, split, folder, config=config, seed=seed)
    network = max((row["validation"] for row in read_log(folder) if "validation" in row), key=lambda row: row[METRIC])
    assert run.validation is not None
    return {
        "trial": name,
        "seed": seed,
        "network": {metric: network[metric] for metric in (METRIC, HITS)},
        "with_prior": {metric: run.validation[metric] for metric in (METRIC, HITS)},
        "minutes": run.minutes,
        "best_epoch": run.config["training"]["best_epoch"],
        "sampling": run.config["resolved"].get("metric_by_steps"),
        "precision": run.config["training"]["precision"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The trials, by the network's validation metric; means over seeds, in per cent."""
    names = sorted({row["trial"] for row in rows}, key=lambda name: -_mean(rows, name, "network", METRIC))
    lines = [
        "| | seeds | HR@10 | NDCG@10 | with prior HR@10 | with prior NDCG@10 | best epoch | min |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        own = [row for row in rows if row["trial"] == name]
        values = [_mean(rows, name, what, metric) for what in ("network", "with_prior") for metric in (HITS, METRIC)]
        epochs, minutes = (np.mean([row[key] for row in own]) for key in ("best_epoch", "minutes"))
        lines.append(
            f"| {name} | {len(own)} | {' | '.join(f'{100 * v:.2f}' for v in values)} | {epochs:.0f} | {minutes:.1f} |"
        )
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]], name: str, what: str, metric: str) -> float:
    return float(np.mean([row[what][metric] for row in rows if row["trial"] == name]))


if __name__ == "__main__":
    main()
