"""Accuracy against diversity and calibration: what re-ranking whole lists costs, over its strengths.

    OMP_NUM_THREADS=1 python -m benchmarks.tables.slates
    OMP_NUM_THREADS=1 python -m benchmarks.tables.slates --models gru4rec --seeds 0 1 2 --out runs/slates.json

Trains models on ml-100k, leave one out, until they stop early, unless the runs are there, and re-ranks their lists of
ten for the test users: by maximal marginal relevance and a determinantal point process, each by item vectors and by
genres, and by calibration to the genres of the history. Each has nine strengths (``diversity`` in a request). Nothing
is chosen: the whole curve is measured on the test subset, with seen items filtered.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from rediffuse.data.features import item_features
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.evaluation.reranked import rerank
from rediffuse.evaluation.task_evaluation import TaskResult, evaluate_ranking
from rediffuse.models.base import Model
from rediffuse.models.directions import item_directions
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.reranking import ItemColumns, RerankingOptions, pool_size, reranking_of
from rediffuse.runs.run_folder import read_run

K = 10
METRICS = (f"ndcg@{K}", f"hr@{K}", f"diversity@{K}", f"calibration@{K}", f"coverage@{K}")
METRIC = f"{METRICS[0]}/unseen"
STRENGTHS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)
COLUMN = "genres"
PLAIN = "plain"
METHODS: dict[str, dict[str, Any]] = {
    "MMR by item vectors": {"slate": "mmr"},
    "MMR by genres": {"slate": "mmr", "diversity_by": COLUMN},
    "DPP by item vectors": {"slate": "dpp"},
    "DPP by genres": {"slate": "dpp", "diversity_by": COLUMN},
    "calibrated by genres": {"slate": "calibrated", "diversity_by": COLUMN},
}
Point = dict[str, Any]


def trained(name: str, split: Any, folder: Path, seed: int) -> tuple[Model, Point]:
    """A model and what its training was; it is trained, or its training continued, unless the run is there."""
    if not (folder / "manifest.json").exists():
        rd.train(name, split, folder, config={"metric": METRIC}, seed=seed, resume=folder.exists())
    run = read_run(folder)
    training = run.config["training"]
    kept = ("minutes", "best_epoch", "stopped", "precision")
    return run.model, {"model": name, "seed": seed} | {key: training[key] for key in kept}


def measured(model: Model, task: Any, dataset: Any) -> Iterator[tuple[Point, TaskResult]]:
    """The plain lists of a model, then those of each method and strength."""
    how = {"num_items": model.num_items, "metrics": METRICS, "features": item_features(dataset.items)}
    plain = evaluate_task(model_scores(model, task), task, k_list=pool_size(K), **how)
    yield {"method": PLAIN}, plain
    columns = ItemColumns(dataset.items)
    for method, options in METHODS.items():
        for strength in STRENGTHS:
            rules = reranking_of(
                RerankingOptions(diversity=strength, **options), columns, lambda: item_directions(model).numpy()
            )
            assert rules is not None
            lists = rerank(plain.ranking, rules, K, task.histories)
            yield {"method": method, "strength": strength}, evaluate_ranking(lists, task, **how)


def summary(seeds: list[list[tuple[Point, TaskResult]]]) -> list[Point]:
    """The means of each point over the seeds, and the standard error over users of its NDCG against plain lists."""

    def accuracy(results: list[TaskResult]) -> NDArray[np.float64]:
        return np.mean([result.per_user[METRIC].to_numpy() for result in results], axis=0)

    found = []
    plain = accuracy([results[0][1] for results in seeds])
    for same in zip(*seeds, strict=True):
        results = [result for _, result in same]
        means = {name: float(np.mean([result.value(f"{name}/unseen") for result in results])) for name in METRICS}
        lost = accuracy(results) - plain
        error = float(lost.std(ddof=1) / np.sqrt(len(lost)))
        found.append(same[0][0] | means | {"ndcg_difference": float(lost.mean()), "standard_error": error})
    return found


def table(points: list[Point]) -> str:
    """The points as Markdown; accuracy and coverage in per cent."""
    lines = [
        "| method | strength | NDCG@10 | against plain | HR@10 | diversity@10 | calibration@10 | coverage@10 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for point in points:
        cells = [point["method"], f"{point['strength']:g}" if "strength" in point else ""]
        cells += [f"{100 * point[METRICS[0]]:.2f}"]
        difference, error = 100 * point["ndcg_difference"], 100 * point["standard_error"]
        cells += [f"{difference:+.2f} ± {error:.2f}" if "strength" in point else "", f"{100 * point[METRICS[1]]:.2f}"]
        cells += [f"{point[METRICS[2]]:.3f}", f"{point[METRICS[3]]:.3f}", f"{100 * point[METRICS[4]]:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--models", nargs="+", default=["gru4rec", "transition"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/slates"))
    parser.add_argument("--out", type=Path, help="result file; default: results/slates-DATA.json")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.leave_one_out(data)
    task = split.task("test")
    facts: list[Point] = []
    test: list[Point] = []
    for name in arguments.models:
        seeds = []
        for seed in arguments.seeds:
            model, fact = trained(name, split, arguments.runs / f"{arguments.data}-{name}-{seed}", seed)
            facts.append(fact)
            print(json.dumps(facts[-1]), flush=True)
            seeds.append(list(measured(model, task, data)))
        points = [{"model": name} | point for point in summary(seeds)]
        print(f"\n{name}\n\n{table(points)}\n", flush=True)
        test += points
    out = arguments.out or RESULTS / f"slates-{arguments.data}.json"
    content = {"data": arguments.data, "split": split.name, "params": split.params, "seeds": arguments.seeds}
    content |= {"seen": "filtered", "users": len(task.users), "runs": facts, "test": test}
    write_result(out, content, precision=facts[0]["precision"])


if __name__ == "__main__":
    main()
