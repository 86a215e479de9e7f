"""D3Rec's temperature against maximal marginal relevance: what diversity of categories costs in accuracy.

    OMP_NUM_THREADS=1 python -m benchmarks.tables.control --data ml-100k
    OMP_NUM_THREADS=1 python -m benchmarks.tables.control --data ml-1m --seeds 0 1 2

Trains DiffRec, D3Rec and D3Rec's ablation (no diffusion) until they stop early, unless the run is there, and measures
the lists of ten that each setting gives. The methods: D3Rec with a temperature and a guidance scale; DiffRec re-ranked
by maximal marginal relevance, with the cosine of its item vectors (``diversity`` in a request) or that of the items'
categories, or with at most n items per category (``max_per``). All settings are measured on the validation users. Of
each method, those that no other beats there in both NDCG and entropy are tested, once. The first tables say which of
them has the most entropy for a given loss of NDCG against plain DiffRec, chosen on the validation users.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from rediffuse.data.features import item_features
from rediffuse.data.histories import Histories
from rediffuse.evaluation import evaluate_task, model_scores
from rediffuse.evaluation.reranked import rerank
from rediffuse.evaluation.task_evaluation import TaskResult, evaluate_ranking
from rediffuse.models.base import Model
from rediffuse.models.directions import item_directions
from rediffuse.models.sampling import Sampling
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.reranking import MarginalRelevance, Reranking, ValueLimit, VectorSimilarity, pool_size
from rediffuse.runs.run_folder import read_run

K, LONGEST = 10, 20
METRIC = f"ndcg@{K}/unseen"
METRICS = (f"ndcg@{K}", f"recall@{LONGEST}", f"coverage@{K}", f"diversity@{K}")
TEMPERATURES = (0.5, 0.7, 1.0, 1.5, 2.0, 4.0, 8.0, 100.0)
SCALES = (-0.5, 0.0, 0.5, 1.0)
DIVERSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
LIMITS = (9, 7, 6, 5, 4, 3, 2)
# Points of NDCG that a setting may lose against plain DiffRec.
LOSSES = (0.0, 0.5, 1.0, 2.0, 4.0)
KEYS = ("method", "diversity", "limit", "guidance_scale", "temperature")
PLAIN = "diffrec"
MODELS = {
    "diffrec": ("diffrec", {}),
    "d3rec": ("d3rec", {}),
    "d3rec-ablation": ("d3rec", {"diffusion": False}),
}
Setting = dict[str, Any]


def shares_of(features: Any) -> NDArray[np.float64]:
    """(num_items, C) what share of an item each category has."""
    sets = features.toarray().astype(np.float64)
    return sets / np.maximum(sets.sum(1, keepdims=True), 1)


def category_figures(lists: NDArray[np.int32], shares: NDArray[np.float64]) -> dict[str, float]:
    """Mean entropy (bits) and number of the categories of lists (users, k); -1 is no item."""
    total = np.where(lists[..., None] >= 0, shares[lists], 0.0).sum(1)
    share = total / np.maximum(total.sum(1, keepdims=True), 1e-12)
    bits = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(1)
    return {f"entropy@{K}": float(bits.mean()), f"categories@{K}": float((total > 0).sum(1).mean())}


def settings_of(name: str) -> Iterator[Setting]:
    """The settings of a model."""
    if name == "diffrec":
        yield {"method": PLAIN}
        for by in ("vectors", "categories"):
            yield from ({"method": f"diffrec, MMR by {by}", "diversity": value} for value in DIVERSITIES)
        yield from ({"method": "diffrec, at most n per category", "limit": limit} for limit in LIMITS)
        return
    for scale in SCALES:
        for tau in TEMPERATURES:
            yield {"method": name, "guidance_scale": scale, "temperature": tau}


def steered(model: Model, task: Any, sampling: Sampling) -> Any:
    """As `model_scores`, with options of the guidance."""

    def score(histories: Histories, start: int) -> Tensor:
        return model.score(histories, users=task.users[start : start + len(histories)], sampling=sampling)

    return score


def measure(model: Model, task: Any, settings: Iterable[Setting], features: Any) -> list[Setting]:
    """The settings with their figures on a task, seen items filtered."""
    shares = shares_of(features)
    of_categories = np.asarray(features.toarray(), dtype=np.float32)
    of_categories /= np.maximum(np.linalg.norm(of_categories, axis=1, keepdims=True), 1e-12)
    values = ValueLimit(0, features.indptr.astype(np.int64), features.indices.astype(np.int64))
    how = {"num_items": model.num_items, "metrics": METRICS, "features": features}
    plain: TaskResult | None = None
    measured = []
    for setting in settings:
        if setting["method"].startswith("diffrec"):
            plain = plain or evaluate_task(model_scores(model, task), task, k_list=pool_size(LONGEST), **how)
            result = plain
            if setting["method"] != PLAIN:
                by_categories = setting["method"].endswith("categories")
                directions = of_categories if by_categories else item_directions(model).numpy()
                limits = [dataclasses.replace(values, limit=setting["limit"])] if "limit" in setting else []
                slate = MarginalRelevance(VectorSimilarity(directions)) if "diversity" in setting else None
                rules = Reranking(limits, slate, setting.get("diversity", 0.0))
                result = evaluate_ranking(rerank(plain.ranking, rules, LONGEST, task.histories), task, **how)
        else:
            sampling = Sampling(**{key: value for key, value in setting.items() if key != "method"})
            result = evaluate_task(steered(model, task, sampling), task, k_list=LONGEST, **how)
        found = result.metrics["unseen"] | category_figures(result.ranking.items["unseen"][:, :K], shares)
        measured.append(setting | found)
    return measured


def frontier(rows: list[Setting]) -> list[Setting]:
    """The settings of each method that no other setting of it beats in both NDCG and entropy."""
    accuracy, entropy = f"ndcg@{K}", f"entropy@{K}"

    def beaten(row: Setting) -> bool:
        others = [other for other in rows if other["method"] == row["method"] and other is not row]
        return any(other[accuracy] >= row[accuracy] and other[entropy] >= row[entropy] for other in others)

    return [row for row in rows if not beaten(row)]


def most_diverse(rows: list[Setting]) -> list[Setting]:
    """For each of `LOSSES` and each method, the setting with the most entropy among those that lose no more NDCG."""
    accuracy, plain = f"ndcg@{K}", next(row for row in rows if row["method"] == PLAIN)
    found = []
    for loss in LOSSES:
        for method in dict.fromkeys(row["method"] for row in rows):
            allowed = [r for r in rows if r["method"] == method and r[accuracy] >= plain[accuracy] - loss / 100]
            if allowed:
                found.append(key_of(max(allowed, key=lambda row: row[f"entropy@{K}"])) | {"loss": loss})
    return found


def mean_over_seeds(rows: list[list[Setting]]) -> list[Setting]:
    """The mean of each figure over the seeds, setting by setting."""
    return [
        {key: value if key in KEYS else float(np.mean([row[key] for row in same])) for key, value in same[0].items()}
        for same in zip(*rows, strict=True)
    ]


def key_of(row: Setting) -> Setting:
    return {key: row[key] for key in KEYS if key in row}


SIGNS = {"diversity": "diversity", "limit": "n", "guidance_scale": "w", "temperature": "tau"}


def table(rows: list[Setting]) -> str:
    """The rows as Markdown; accuracy and coverage in per cent."""
    lines = [
        "| method | setting | NDCG@10 | Recall@20 | entropy, bits | categories | coverage |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        at = ", ".join(f"{sign} = {row[key]:g}" for key, sign in SIGNS.items() if key in row)
        figures = [f"{100 * row[name]:.2f}" for name in METRICS[:2]]
        figures += [f"{row[f'{name}@{K}']:.{digits}f}" for name, digits in (("entropy", 3), ("categories", 2))]
        lines.append(f"| {row['method']} | {at} | {' | '.join([*figures, f'{100 * row[METRICS[2]]:.1f}'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/control"))
    parser.add_argument("--out", type=Path, help="result file; default: results/control-DATA.json")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.ratio(data, train=0.6, valid=0.2)
    features = item_features(data.items)
    assert features is not None, "The items have no categories."
    models: dict[str, list[Model]] = {}
    facts = []
    for name, (kind, options) in MODELS.items():
        for seed in arguments.seeds:
            folder = arguments.runs / f"{arguments.data}-{name}-{seed}"
            if not (folder / "manifest.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                rd.train(kind, split, folder, config=options | {"metric": METRIC}, seed=seed)
            run = read_run(folder)
            models.setdefault(name, []).append(run.model)
            training = run.config["training"]
            facts.append({"model": name, "seed": seed})
            facts[-1] |= {key: training[key] for key in ("minutes", "best_epoch", "stopped", "precision")}
            print(json.dumps(facts[-1]), flush=True)

    def on(task: Literal["valid", "test"], settings: dict[str, list[Setting]]) -> list[Setting]:
        """The settings of each model, with the means of their figures over the seeds."""
        measured = partial(measure, task=split.task(task), features=features)
        per_model = (
            mean_over_seeds([measured(model=model, settings=chosen) for model in models[name]])
            for name, chosen in settings.items()
        )
        return [row for rows in per_model for row in rows]

    valid = on("valid", {name: list(settings_of(name)) for name in MODELS})
    chosen = most_diverse(valid)
    kept = [key_of(row) for row in frontier(valid)]
    test = on("test", {name: [key for key in kept if key in list(settings_of(name))] for name in MODELS})
    for loss in LOSSES:
        settings = [key_of(choice) for choice in chosen if choice["loss"] == loss]
        print(f"\nAt most {loss:g} points of NDCG lost on the validation users; test\n")
        print(table([row for row in test if key_of(row) in settings]))
    print("\nValidation\n\n" + table(valid) + "\n\nTest\n\n" + table(test))
    out = arguments.out or RESULTS / f"control-{arguments.data}.json"
    content = {"data": arguments.data, "split": split.name, "params": split.params, "seeds": arguments.seeds}
    found = {"runs": facts, "chosen": chosen, "valid": valid, "test": test}
    write_result(out, content | found, precision=facts[0]["precision"])


if __name__ == "__main__":
    main()
