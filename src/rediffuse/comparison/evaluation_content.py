"""What an evaluation finds, as it is written: means, tables of users and true items, and lists."""

from __future__ import annotations

import datetime
import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.comparison.markdown import POLICY_NAMES
from rediffuse.comparison.runs import evaluation_file
from rediffuse.comparison.slices import ceiling, slices_of_evaluation
from rediffuse.data.cold_users import SPLITS_WITH_HISTORIES, without_text
from rediffuse.data.dataset import Dataset
from rediffuse.data.features import item_features
from rediffuse.data.histories import Histories
from rediffuse.data.split import TRAIN, VALID, Split, Task
from rediffuse.display import Displayed
from rediffuse.errors import RediffuseWarning
from rediffuse.evaluation import NOT_RANKED, POLICIES, TaskResult, protocols
from rediffuse.evaluation.metrics import (
    ACCURACY,
    DEFAULT_METRICS,
    MEASURED,
    Metric,
    flat_name,
    parse_metric,
    parse_metrics,
)
from rediffuse.evaluation.task_evaluation import in_history
from rediffuse.files import parquet_bytes
from rediffuse.graphs import social_adjacency
from rediffuse.runs.environment import environment

# The metrics that `repr` shows, and those of slices and ceilings.
SHOWN = ("hr@10", "ndcg@10", "recall@20", "mrr@10")
# Length of the stored lists.
LIST_LENGTH = 20


class Evaluation(Displayed, dict[str, Any]):
    """The result of `evaluate`: a dict, the content of ``test.json``, that shows its main metrics."""

    def _display(self) -> tuple[str, dict[str, Any]]:
        facts: dict[str, Any] = {"protocol": self["protocol"]["name"], "users": self["counts"]["users"]}
        if "targets" in self["counts"]:
            facts["targets"] = self["counts"]["targets"]
        for policy, metrics in self["metrics"].items():
            facts[POLICY_NAMES[policy]] = {name: metrics[name] for name in SHOWN if name in metrics}
        if self["counts"]["truth_never_trained"]:
            facts["new items"] = f"{self['counts']['truth_never_trained_share']:.1%} of the true items"
        if self["counts"]["cold_users"]:
            facts["test"] = without_text(self["counts"])
            for policy, metrics in (self["metrics_with_history"] or {}).items():
                facts[f"{POLICY_NAMES[policy]}, with a history"] = {n: metrics[n] for n in SHOWN if n in metrics}
        return f"Evaluation of {self['run']}", facts


def measures(dataset: Dataset, more: Sequence[str]) -> tuple[Metric, ...]:
    """The usual metrics of a dataset, and ``more``."""
    of_features = ["diversity@10", "calibration@10"] if item_features(dataset.items) is not None else []
    return parse_metrics([*DEFAULT_METRICS, *of_features, *more], MEASURED)


def evaluation_content(
    results: list[TaskResult],
    split: Split,
    task: Task,
    rules: protocols.Protocol,
    seeds: list[int],
    more: Sequence[str],
    *,
    name: str,
) -> tuple[Evaluation, dict[str, pl.DataFrame]]:
    """The content of test.json but for costs, and the tables of an evaluation by name.

    Args:
        results: one per draw.
        split, task, rules: what was evaluated, and how.
        seeds: of the draws.
        more: metrics besides the usual ones.
        name: of the run.
    """
    known = [
        {policy: result.with_history[policy] for policy in rules.policies} for result in results if result.with_history
    ]
    if not known:
        warnings.warn(
            f"None of the {len(task.users):,} test users has a history, so all get one list by popularity, and these "
            f"figures say nothing of models beyond it. {SPLITS_WITH_HISTORIES}",
            RediffuseWarning,
            stacklevel=5,
        )
    by_seed = [{policy: result.metrics[policy] for policy in rules.policies} for result in results]
    per_user = _per_user(results, split, rules.policies)
    truths = [_truth(result, task, split.dataset, rules.policies) for result in results]
    measured = by_seed[0][rules.policies[0]]
    sliced = [n for n in dict.fromkeys((*SHOWN, *more)) if n in measured and parse_metric(n, MEASURED).kind in ACCURACY]
    only_validated, ceilings = _new_items(results[0], task, split, sliced, rules.policies)
    content = Evaluation(
        {
            "run": name,
            "split": split.name,
            "leak": split.leak,
            "protocol": rules.to_dict(),
            "task_fingerprint": _fingerprint(split.fingerprint, rules.to_dict()),
            "seed": seeds[0],
            "sampling_seeds": seeds,
            "metrics": means_of_draws(by_seed),
            "metrics_by_seed": by_seed,
            "metrics_with_history": means_of_draws(known) if known else None,
            "counts": results[0].counts | {"truth_only_in_validation": only_validated},
            "slices": slices_of_evaluation(per_user, truths, sliced, rules.policies),
            "ceiling": ceilings,
            "users_per_second": None,
            "peak_memory_mib": None,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": None,
            "environment": environment(),
        }
    )
    lists = _lists(results[0], split.dataset, rules.policies)
    return content, {"per_user_test": per_user, "truth_test": truths[0], "lists_test": lists}


def evaluation_files(
    content: dict[str, Any], tables: dict[str, pl.DataFrame], protocol: str | None
) -> dict[str, bytes]:
    """The files of an evaluation by name; ``protocol`` is as for `evaluation_file`."""
    files = {evaluation_file(f"{name}.parquet", protocol): parquet_bytes(table) for name, table in tables.items()}
    return files | {evaluation_file("test.json", protocol): json.dumps(content, indent=2).encode()}


def means_of_draws(draws: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Policy -> metric -> mean over draws."""
    return {
        policy: {name: float(np.mean([draw[policy][name] for draw in draws])) for name in values}
        for policy, values in draws[0].items()
    }


def _fingerprint(split: str, rules: dict[str, Any]) -> str:
    """Equal for evaluations of the same users on the same items by the same rules."""
    parts = [split, *(rules[name] for name in ("candidates", "seen", "validation_is_input"))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _new_items(
    result: TaskResult, task: Task, split: Split, metrics: Sequence[str], policies: Sequence[str]
) -> tuple[int, dict[str, dict[str, dict[str, float]]]]:
    """What models without features lose to new items.

    Returns:
        How many true items have validation interactions and no training interaction; the best means that lists can
        reach, "all_items" or with "known_items" alone -> policy -> metric -> value.
    """
    truth = result.ranking.truth
    known = task.popularity[truth.items] > 0
    validated = split.item_counts(split.subset == VALID)[truth.items] > 0
    filtered = in_history(task, truth, split.dataset.num_items)
    parsed = [parse_metric(name) for name in metrics]
    ceilings = {
        name: {
            policy: ceiling(parsed, truth.lengths, reachable & ~filtered if policy == "unseen" else reachable)
            for policy in policies
        }
        for name, reachable in (("all_items", np.ones_like(known)), ("known_items", known))
    }
    return int((validated & ~known).sum()), ceilings


def _per_user(results: list[TaskResult], split: Split, policies: Sequence[str]) -> pl.DataFrame:
    """The per-user table of the first draw, with metrics averaged over draws."""
    first, dataset = results[0].per_user, split.dataset
    dropped = [policy for policy in POLICIES if policy not in policies]
    kept = [c for c in first.columns if not any(_is_of(c, policy) for policy in dropped)]
    averaged = [
        pl.Series(c, np.mean([result.per_user[c].to_numpy() for result in results], axis=0)).fill_nan(None)
        for c in kept
        if "@" in c
    ]
    ids = dataset.user_ids.gather(first["user"]).alias("user_id")
    trained = split.user_counts(split.subset == TRAIN)[first["user"]]
    kept.insert(kept.index("truth_items"), "train_interactions")
    first = first.with_columns(train_interactions=pl.Series(trained, dtype=pl.Int64))
    if (links := dataset.social) is not None:
        friends = np.diff(social_adjacency(links.source, links.target, dataset.num_users).indptr)
        kept.insert(kept.index("truth_items"), "friends")
        first = first.with_columns(friends=pl.Series(friends[first["user"]], dtype=pl.Int64))
    return first.select(kept).with_columns(averaged).with_columns(ids.alias("user")).rename({"user": "user_id"})


def _is_of(column: str, policy: str) -> bool:
    """Whether a column of a per-user table belongs to a policy; ids and counts belong to none."""
    measured = "@" in column or column.startswith("rank")
    return measured and (column.endswith(f"/{policy}") if policy != "all" else "/" not in column)


def _truth(result: TaskResult, task: Task, dataset: Dataset, policies: Sequence[str]) -> pl.DataFrame:
    truth = result.ranking.truth
    ranks = {flat_name("rank", policy): pl.Series(result.ranking.ranks[policy]) for policy in policies}
    return pl.DataFrame(
        {
            "user_id": dataset.user_ids.gather(task.users[truth.owners]),
            **_target_of(result, truth.owners),
            "item_id": dataset.item_ids.gather(truth.items),
            "train_count": task.popularity[truth.items],
            **_ages(truth, task, dataset),
            **{name: column.set(column == NOT_RANKED, None) for name, column in ranks.items()},
        }
    )


def _ages(truth: Histories, task: Task, dataset: Dataset) -> dict[str, NDArray[np.float64]]:
    """The column of seconds from the first interaction of any user with a true item to the user's; none without times.

    Args:
        truth: the distinct true items of the task. Of several interactions of a user with one, the first counts.
    """
    times, real = task.truth.times, dataset.interactions.without_synthetic()
    if not dataset.has_timestamps or times is None or real.times is None:
        return {}
    appeared = np.full(dataset.num_items, np.inf)
    np.minimum.at(appeared, real.items, real.times.astype(np.float64))
    keys = task.truth.owners * dataset.num_items + task.truth.items
    order = np.lexsort((times, keys))
    first = order[np.unique(keys[order], return_index=True)[1]]  # in the order of ``truth``
    return {"age": times[first].astype(np.float64) - appeared[truth.items]}


def _target_of(result: TaskResult, rows: NDArray[np.int64]) -> dict[str, pl.Series]:
    """The column that tells the targets of a user apart: how much came before each; none where users have one row."""
    return {"history_length": result.per_user["history_length"].gather(rows)} if "targets" in result.counts else {}


def _lists(result: TaskResult, dataset: Dataset, policies: Sequence[str]) -> pl.DataFrame:
    tables = []
    for policy in policies:
        items = result.ranking.items[policy][:, :LIST_LENGTH]
        row, column = np.nonzero(items >= 0)
        tables.append(
            pl.DataFrame(
                {
                    "user_id": dataset.user_ids.gather(result.ranking.users[row]),
                    **_target_of(result, row),
                    "policy": pl.Series([policy], dtype=pl.Categorical).gather(np.zeros(len(row), dtype=np.int64)),
                    "rank": (column + 1).astype(np.int32),
                    "item_id": dataset.item_ids.gather(items[row, column]),
                }
            )
        )
    return pl.concat(tables)
