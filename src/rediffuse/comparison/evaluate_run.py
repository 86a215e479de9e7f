"""Evaluation of a run on the test subset: metrics, per-user values and lists, written into the run folder."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rediffuse import devices, distributed
from rediffuse.arguments import require_integer, require_text
from rediffuse.comparison.evaluation_content import (
    LIST_LENGTH,
    Evaluation,
    evaluation_content,
    evaluation_files,
    means_of_draws,
    measures,
)
from rediffuse.data.dataset import Dataset
from rediffuse.data.features import item_features
from rediffuse.data.loading import as_dataset
from rediffuse.errors import ConfigError, RediffuseWarning, RunError
from rediffuse.evaluation import TaskResult, evaluate_task, model_scores, protocols
from rediffuse.evaluation.metrics import MEASURED, parse_metrics
from rediffuse.evaluation.reranked import rerank
from rediffuse.evaluation.task_evaluation import evaluate_ranking
from rediffuse.memory import PeakMemory, keep_freed_memory
from rediffuse.models.directions import item_directions
from rediffuse.models.placement import place
from rediffuse.reranking import (
    ItemColumns,
    RerankingOptions,
    SlateName,
    pool_size,
    reranking_of,
    uncalibrated_remark,
)
from rediffuse.runs.card import with_test
from rediffuse.runs.lock import PATIENCE, folder_lock
from rediffuse.runs.run_folder import Run, add_files, named, publish_changes, read_run, run_path
from rediffuse.runs.split_of import split_of
from rediffuse.runs.tracking import log_test_metrics


def evaluate(
    run: str | Path | Run,
    data: Dataset | str | Path,
    *,
    protocol: str | None = None,
    seeds: Sequence[int] | int = (0,),
    metrics: Sequence[str] = (),
    max_per: Mapping[str, int] | None = None,
    diversity: float | None = None,
    diversity_by: str | None = None,
    slate: SlateName | None = None,
    device: str | torch.device = "cpu",
) -> Evaluation:
    """Evaluate a run on the test subset of its split, and write the result into its folder.

    It writes ``test.json`` (the returned result), ``per_user_test.parquet``, ``truth_test.parquet`` (the rank of every
    true item) and ``lists_test.parquet``. A protocol other than that of the run's split has files of its own, with its
    name in theirs. The processes of a distributed job divide the users; process 0 writes.

    Args:
        run: a run folder, or what `rediffuse.train` returned.
        data: the dataset it was trained on, or the path of its folder.
        protocol: see `rediffuse.evaluation.protocols`; None: that of the run's split.
        seeds: seeds of the sampling noise, at least 0. A stochastic model is evaluated once per seed, other models with
            the first only. They also determine the items that ``sampled-N`` draws.
        metrics: metrics to compute besides the usual ones, for example ``["ndcg@50"]``.
        max_per, diversity, diversity_by, slate: as for `Recommender.recommend`. Re-ranked lists of 20 items, made of
            the best 200, are measured beside those of the model.
        device: where the model computes and ranks are counted, as for `Recommender.load`; the result names it.

    Returns:
        A dict: metrics per policy, averaged over ``seeds``; metrics of each seed; metrics over the users with a history
        alone (``metrics_with_history``; None if no user has one); metrics of new and known users and items and of items
        by age (``slices``); the best means that can be reached with and without new items (``ceiling``); counts,
        protocol, costs, environment.

    Raises:
        RunError: the run was trained on other data or another split, or does not fit the protocol; another process
            is working in its folder; another process of a distributed job has failed.
        StorageError: the folder cannot be written.
        ConfigError: the protocol or a metric is unknown; there is no seed, or one below 0; the run has no item table or
            no such column for ``max_per`` or ``diversity_by``, or no item vectors for ``diversity``; torch finds no
            such device.

    Warns:
        RediffuseWarning: no test user has a history; there are histories that lists cannot be calibrated to.
    """
    distributed.init()
    devices.resolve(device)  # refuses it before the run is read
    folder, dataset, protocol = (
        run_path("run", run, writes=True),
        as_dataset("data", data),
        require_text("protocol", protocol),
    )
    several = seeds if isinstance(seeds, Iterable) else (seeds,)
    # Python integers, because those of NumPy cannot be written as JSON.
    seeds = [require_integer("seeds", seed, minimum=None) for seed in several]
    if min(seeds, default=-1) < 0:
        raise ConfigError(f"The sampling seeds are {seeds}.", "Give at least one, and none below 0, for example (0,).")
    more = [str(metric) for metric in parse_metrics(metrics, MEASURED)] if metrics else []
    options = RerankingOptions(max_per, diversity, diversity_by, slate)
    with distributed.fail_together("Start the same command again."):
        found = Evaluation(_evaluate(folder, named(run, folder), dataset, protocol, seeds, more, options, device))
        distributed.main_process_first(lambda: publish_changes(run, folder))
        return found


def _evaluate(
    folder: Path,
    name: str,
    dataset: Dataset,
    protocol: str | None,
    seeds: list[int],
    more: list[str],
    options: RerankingOptions,
    device: str | torch.device,
) -> dict[str, Any]:
    contents = read_run(folder)
    computed_on = place(contents.model, device)
    reranking = reranking_of(
        options, ItemColumns(contents.item_table), lambda: item_directions(contents.model).cpu().numpy()
    )

    def check_lock() -> None:  # fail before the work, not after it
        with folder_lock(folder, "evaluating", PATIENCE):
            pass

    distributed.main_process_first(check_lock)
    made_with = contents.config["split"]
    if made_with["name"] == "none":
        raise RunError(
            f"{folder} has learned from all its interactions, so none is left to test it on.",
            "Evaluate the run that it was made of, or train with a split.",
        )
    split = split_of(contents, dataset)
    rules = protocols.protocol(protocol or split.name).on(split)
    task, features = rules.task(split), item_features(dataset.items)
    metrics = [str(metric) for metric in measures(dataset, more)]
    results: list[TaskResult] = []
    memory, seconds, reranked = PeakMemory(computed_on), [], []
    for seed in seeds if contents.model.stochastic else seeds[:1]:
        score = model_scores(contents.model, task, seed)
        if rules.negatives is not None:
            score = protocols.among_sampled(score, task, rules.negatives, dataset.num_items, seed, rules.exclude_seen)
        with keep_freed_memory():
            began = time.perf_counter()
            result = evaluate_task(
                score,
                task,
                num_items=dataset.num_items,
                metrics=metrics,
                k_list=LIST_LENGTH if reranking is None else pool_size(LIST_LENGTH),
                features=features,
                shared=True,
            )
            results.append(result)
            seconds.append(time.perf_counter() - began)
        if reranking is not None:
            if not reranked and (unknown := reranking.uncalibrated(task.histories.without_synthetic())):
                warnings.warn(uncalibrated_remark(unknown, len(task.users)), RediffuseWarning, stacklevel=4)
            lists = rerank(result.ranking, reranking, LIST_LENGTH, task.histories)
            found = evaluate_ranking(lists, task, num_items=dataset.num_items, metrics=metrics, features=features)
            reranked.append({policy: found.metrics[policy] for policy in rules.policies})
    test_result, tables = evaluation_content(results, split, task, rules, seeds[: len(results)], more, name=name)
    test_result |= {
        "users_per_second": len(task.users) / seconds[0],
        "peak_memory_mib": memory.mib(),
        "device": devices.description(computed_on),
    }
    if reranked:
        means, plain = means_of_draws(reranked), test_result["metrics"]
        test_result["reranked"] = {
            **options.to_dict(),
            "metrics": means,
            "difference": {
                policy: {name: value - plain[policy][name] for name, value in values.items()}
                for policy, values in means.items()
            },
        }
    other = None if rules.name == split.name else rules.name
    files = evaluation_files(test_result, tables, other)
    card = folder / "README.md"
    if other is None and card.exists():
        text = card.read_text(encoding="utf-8")
        files["README.md"] = with_test(text, contents.config, test_result).encode()
    distributed.main_process_first(lambda: add_files(folder, files, made_of=contents.weights))
    distributed.main_process_first(lambda: log_test_metrics(contents.config, folder, test_result))
    return test_result
