"""Split by time: what a model gains from the validation interactions, which are the last ones before the test.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.measure.refit_by_time --data amazon-beauty

Every model is trained twice. First on the training subset, with what is to be chosen (epochs, options) chosen on
validation. Then on both subsets with these choices: a model that is trained by gradient from the beginning, for as many
epochs as were best; a model in closed form by its option ``refit``. Both are evaluated on the same test task; the
histories hold the validation interactions in both cases. Differences are tested per user (paired t test, Holm's
correction over all pairs of models trained on the same subsets).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from rediffuse.comparison.statistics import holm, paired_test
from rediffuse.data.split import Split
from rediffuse.evaluation import TaskResult, evaluate_task, model_scores
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_run

METRICS = ("hr@10", "ndcg@10")
METRIC = "ndcg@10/unseen"
SUBSETS = ("train", "train and validation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="global-time")
    parser.add_argument("--models", nargs="+", default=["ease", "theat", "gru4rec", "sasrec"])
    parser.add_argument("--minutes", type=float, default=10.0, help="of each training, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="result file; default: results/refit_by_time-DATA.json")
    arguments = parser.parse_args()
    split = rd.split.by_name(arguments.split, public_dataset(arguments.data))
    rows, values = [], {subsets: {} for subsets in SUBSETS}
    for model in arguments.models:
        for row, of_users in measure(model, split, arguments.seed, arguments.minutes):
            rows.append(row)
            values[row["learned_from"]][model] = of_users
            print(json.dumps(row), flush=True)
    facts = {"data": arguments.data, "split": {"name": split.name} | split.params, "seed": arguments.seed}
    out = arguments.out or RESULTS / f"refit_by_time-{arguments.data}.json"
    precision = ", ".join(sorted({row["precision"] for row in rows}))
    write_result(out, facts | {"rows": rows, "pairs": pairs(values)}, precision=precision)


def measure(model: str, split: Split, seed: int, minutes: float) -> list[tuple[dict[str, Any], NDArray[np.float64]]]:
    """Train twice and evaluate: for each, its figures and the users' values of `METRIC`."""
    found = []
    options: dict[str, Any] = {"metric": METRIC, "patience": 8}
    by_gradient = rd.models.model_class(model).trained_by_gradient
    learned = split
    for subsets in SUBSETS:
        if not by_gradient:
            options["refit"] = subsets != SUBSETS[0]
        elif found:
            options["epochs"] = found[0][0]["epochs"]
            learned = split.training_on_validation()
        with tempfile.TemporaryDirectory() as folder:
            run = rd.train(model, learned, Path(folder) / "run", config=options, seed=seed, max_minutes=minutes)
            training = run.config["training"]
            result = evaluated(Path(folder) / "run", split)
        row = {
            **{"model": model, "learned_from": subsets, "minutes": round(run.minutes, 1)},
            **{"epochs": training["best_epoch"] if by_gradient and not found else options.get("epochs")},
            "precision": training["precision"],
            **{f"{metric}/{policy}": means[metric] for policy, means in result.metrics.items() for metric in METRICS},
        }
        known = result.per_user["history_length"].to_numpy() > 0
        of_users = result.per_user[METRIC].to_numpy()
        row |= {"users": len(known), f"{METRIC}, users with a history": float(of_users[known].mean())}
        found.append((row, of_users))
    return found


def evaluated(run: Path, split: Split) -> TaskResult:
    """Evaluate a run on the test task of a split that may not be its own."""
    task = split.task("test")
    model = read_run(run).model
    return evaluate_task(model_scores(model, task), task, num_items=split.dataset.num_items, metrics=METRICS)


def pairs(values: dict[str, dict[str, NDArray[np.float64]]]) -> list[dict[str, Any]]:
    """Test all pairs of models that learned from the same subsets."""
    found = []
    for subsets, models in values.items():
        tests = [
            {"learned_from": subsets, "first": first, "second": second}
            | dataclasses.asdict(paired_test(models[first], models[second]))
            for first, second in itertools.combinations(models, 2)
        ]
        corrected = holm([test["p"] for test in tests])
        found += [test | {"p_holm": p} for test, p in zip(tests, corrected, strict=True)]
    return found


if __name__ == "__main__":
    main()
