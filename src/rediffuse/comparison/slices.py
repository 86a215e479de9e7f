"""Metrics of groups of users and of groups of true items, from the stored tables of evaluations.

A metric of a group of true items leaves all other true items out of the truth. Ranks stay those in the whole catalogue,
so the ranks that an evaluation stored are enough, and nothing is scored again.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.comparison.runs import BY_USER, EvaluatedRun, Variant
from rediffuse.comparison.statistics import mean_interval
from rediffuse.data.cold_users import share
from rediffuse.data.dataset import Dataset
from rediffuse.data.near_duplicates import near_duplicates
from rediffuse.errors import RediffuseWarning
from rediffuse.evaluation.metrics import ACCURACY, NOT_RANKED, Metric, accuracy_values, flat_name, parse_metric
from rediffuse.runs.split_of import split_of

# Cut-off of the metrics of true items by popularity, and number of groups of about equal size that are aimed at.
SLICE_K = 10
SLICES = 4

# What new and known users and items are grouped by, and ages of items; each with the column that it is read from.
NEW_USERS = ("new and known users", "train_interactions")
NEW_ITEMS = ("new and known items", "train_count")
AGE = ("time since the item appeared", "age")
NEAR_DUPLICATES = "near-duplicates"
# The groups of true items that have metrics of users.
OF_TRUTH = (NEW_ITEMS[0], AGE[0])

DAY = 86_400
# Days since the first interaction of an item in the data at which groups begin. Before them is a group of its own:
# interactions that have none before them.
AGES = (1, 7, 30, 365)
AGE_NAMES = (
    "just appeared",
    f"under {AGES[0]} day",
    *(f"{first} to {last} days" for first, last in itertools.pairwise(AGES)),
    f"{AGES[-1]} days and more",
)


@dataclass(frozen=True)
class Grouping:
    """A partition of users or of true items.

    Attributes:
        by: what they are grouped by, in words.
        of: (n,) the number of the group of each.
        names: of the groups. Some may be empty.
    """

    by: str
    of: NDArray[np.int64]
    names: Sequence[str]

    @property
    def several(self) -> bool:
        """Whether more than one group has members; otherwise it is what the whole test is over."""
        return len(np.unique(self.of)) > 1

    def groups(self) -> Iterable[tuple[str, NDArray[np.bool_]]]:
        """The name of every group that is not empty, and (n,) which ones are in it."""
        for number, name in enumerate(self.names):
            chosen = self.of == number
            if chosen.any():
                yield name, chosen


def groups_of_equal_size(numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str]]:
    """The group (n,) of each number, and the names of the groups: zero, then about `SLICES` groups of equal size."""
    positive = numbers[numbers > 0]
    edges = [0]
    if len(positive):
        inner = np.quantile(positive, np.arange(1, SLICES) / SLICES, method="lower") + 1
        edges = [edge for edge in np.unique([0, 1, *inner]).tolist() if edge <= positive.max()]
    if not (numbers == 0).any():
        edges = edges[1:]
    tops = [edge - 1 for edge in edges[1:]] + [int(numbers.max())]
    names = [str(low) if low == top else f"{low}-{top}" for low, top in zip(edges, tops, strict=True)]
    return np.searchsorted(edges, numbers, side="right") - 1, names


def new_and_known_users(per_user: pl.DataFrame) -> list[Grouping]:
    """Users without and with a training interaction; none if the table does not say."""
    by, column = NEW_USERS
    return _new_and_known(by, per_user[column], "users") if column in per_user.columns else []


def with_near_duplicates(run: EvaluatedRun, dataset: Dataset) -> Grouping:
    """Test users whose interactions before the test are nearly those of another user, and the others.

    What is tested does not count: two users are no near-duplicates because the same item comes next.

    Raises:
        RunError: the run was trained on other data, or another split of them.

    Warns:
        RediffuseWarning: no test user has a near-duplicate.
    """
    similar = near_duplicates(split_of(run, dataset).before_test().without_synthetic())
    ids = pl.DataFrame({"user_id": dataset.user_ids, "similar": similar > 0})
    rows = run.per_user.select("user_id").join(ids, on="user_id", how="left", maintain_order="left")
    of = rows["similar"].to_numpy().astype(np.int64)
    if not of.any():
        warnings.warn("No test user has a near-duplicate before the test.", RediffuseWarning, stacklevel=3)
    return Grouping(NEAR_DUPLICATES, of, ["no near-duplicate", "a near-duplicate"])


def groupings_of_truth(truth: pl.DataFrame) -> list[Grouping]:
    """True items without and with a training interaction, and by their age where the table has it."""
    by, column = NEW_ITEMS
    found = _new_and_known(by, truth[column], "items")
    by, column = AGE
    if column in truth.columns:
        ages = truth[column].to_numpy()
        of = np.where(ages <= 0, 0, 1 + np.searchsorted(np.array(AGES) * DAY, ages, side="right"))
        found.append(Grouping(by, of, AGE_NAMES))
    return found


def _new_and_known(by: str, counts: pl.Series, what: str) -> list[Grouping]:
    return [Grouping(by, (counts.to_numpy() > 0).astype(np.int64), [f"new {what}", f"known {what}"])]


def metrics_of_truth(
    metrics: Sequence[Metric], lengths: NDArray[np.int64], ranks: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
    """Accuracy with the truth restricted to some true items.

    Args:
        metrics: accuracy metrics.
        lengths: (users,) number of true items of each user.
        ranks: (true items,) in the whole catalogue, those of the first user first; `NOT_RANKED` without a rank.
        chosen: (true items,) which ones stay.

    Returns:
        The users (n,) who have one that stays, and metric -> (n,) values.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    left = np.bincount(owners[chosen], minlength=len(lengths))
    users = np.flatnonzero(left)
    offsets = np.concatenate(([0], np.cumsum(left[users])))
    return users, accuracy_values(metrics, offsets, ranks[chosen], left[users])


def ceiling(metrics: Sequence[Metric], lengths: NDArray[np.int64], reachable: NDArray[np.bool_]) -> dict[str, float]:
    """The means over users of lists that begin with every true item that can be recommended.

    Args:
        metrics: accuracy metrics.
        lengths: (users,) number of true items of each user.
        reachable: (true items,) which ones can be recommended.
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)[reachable]
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(lengths)))))
    ranks = np.arange(len(owners)) - offsets[owners] + 1
    values = accuracy_values(metrics, offsets, ranks, lengths)
    return {name: float(of_users.mean()) for name, of_users in values.items()}


def slices_of_evaluation(
    per_user: pl.DataFrame, truths: Sequence[pl.DataFrame], metrics: Sequence[str], policies: Sequence[str]
) -> list[dict[str, Any]]:
    """New and known users and items, and items by age, as they are in test.json.

    Args:
        per_user: one row per user (or target), with metrics averaged over draws.
        truths: one row per true item, for each draw.
        metrics: accuracy metrics that ``per_user`` has.
        policies: the reported ones.

    Returns:
        One row per group that is not empty: ``by``, ``slice``, ``size`` (users or targets that the metrics are means
        over), ``truth_items``, and ``metrics``, policy -> metric -> mean.
    """
    lengths, parsed = per_user["truth_items"].to_numpy(), [parse_metric(name) for name in metrics]
    rows: list[dict[str, Any]] = []
    for grouping in new_and_known_users(per_user):
        for name, chosen in grouping.groups():
            of_users = per_user.filter(pl.Series(chosen))
            means = {p: {m: float(of_users[flat_name(m, p)].mean()) for m in metrics} for p in policies}  # pyright: ignore[reportArgumentType]
            rows.append(_row(grouping.by, name, len(of_users), int(lengths[chosen].sum()), means))
    for grouping in groupings_of_truth(truths[0]):
        for name, chosen in grouping.groups():
            means, size = {}, 0
            for policy in policies:
                draws = [metrics_of_truth(parsed, lengths, _ranks(truth, policy), chosen) for truth in truths]
                size = len(draws[0][0])
                means[policy] = {m: float(np.mean([values[m].mean() for _, values in draws])) for m in metrics}
            rows.append(_row(grouping.by, name, size, int(chosen.sum()), means))
    return rows


def _row(by: str, name: str, size: int, truth_items: int, means: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {"by": by, "slice": name, "size": size, "truth_items": truth_items, "metrics": means}


def _ranks(truth: pl.DataFrame, policy: str) -> NDArray[np.int64]:
    """(true items,) ranks of a table of true items."""
    return truth[flat_name("rank", policy)].fill_null(NOT_RANKED).to_numpy()


def slices(
    groups: Sequence[Variant], measured: Sequence[str], policy: str, more: Sequence[Grouping] = ()
) -> Iterable[dict[str, Any]]:
    """Rows of `Comparison.slices` for one policy.

    Args:
        groups: the variants.
        measured: flat names of the metrics that every run measured per user.
        policy: "all" or "unseen".
        more: further groups of users.
    """
    users = _common([run.per_user for group in groups for run in group.runs])
    items = _common([run.truth for group in groups for run in group.runs])
    columns = [c for c in measured if flat_name(c.partition("/")[0], policy) == c]
    names = [c.partition("/")[0] for c in columns]
    accuracy = [parse_metric(name) for name in names if name.partition("@")[0] in ACCURACY]
    by_user = [
        Grouping(by, *groups_of_equal_size(users[column].to_numpy()))
        for by, column in BY_USER.items()
        if column in users.columns
    ]
    by_user += [grouping for grouping in (*new_and_known_users(users), *more) if grouping.several]
    popularity = Grouping("item popularity", *groups_of_equal_size(items["train_count"].to_numpy()))
    by_truth = [grouping for grouping in groupings_of_truth(items) if grouping.several]
    owners = items["user_id"].rank("dense").to_numpy()  # true items of one user are found or missed together
    lengths = users["truth_items"].to_numpy()
    for group in groups:
        ranks = [_ranks(run.truth, policy) for run in group.runs]
        found = np.stack([rank <= SLICE_K for rank in ranks])
        gain = found / np.log2(np.where(found, np.stack(ranks), 1) + 1.0)
        of_items = {f"recall@{SLICE_K}": found.mean(axis=0), f"gain@{SLICE_K}": gain.mean(axis=0)}
        measures = [
            *((by, n, group.per_user(c), group.users) for by in by_user for n, c in zip(names, columns, strict=True)),
            *((popularity, name, values, owners) for name, values in of_items.items()),
        ]
        for grouping, metric, values, clusters in measures:
            for name, chosen in grouping.groups():
                known = chosen & ~np.isnan(values)
                if known.any():
                    yield _measured(policy, grouping.by, metric, name, group, values[known], clusters, known)
        for grouping in by_truth:
            for name, chosen in grouping.groups():
                draws = [metrics_of_truth(accuracy, lengths, rank, chosen) for rank in ranks]
                rows = draws[0][0]
                for metric in draws[0][1]:
                    values = np.mean([of_draw[metric] for _, of_draw in draws], axis=0)
                    yield _measured(policy, grouping.by, metric, name, group, values, group.users, rows)


def _measured(
    policy: str,
    by: str,
    metric: str,
    name: str,
    group: Variant,
    values: NDArray[np.float64],
    clusters: NDArray[np.int64] | None,
    rows: NDArray[Any],
) -> dict[str, Any]:
    interval = mean_interval(values, None if clusters is None else clusters[rows])
    return {
        "policy": policy,
        "by": by,
        "metric": metric,
        "slice": name,
        "size": len(values),
        "variant": group.label,
        **interval.to_dict(),
    }


def _common(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The first table, with the columns that all have: some may be of an earlier version."""
    return tables[0].select(c for c in tables[0].columns if all(c in table.columns for table in tables))


def ceiling_text(counts: dict[str, Any], ceilings: dict[str, Any] | None) -> str:
    """What new items cost at least: a sentence without its full stop.

    Args:
        counts, ceilings: ``counts`` and ``ceiling`` of test.json; ``ceiling`` is None in that of an earlier version.
    """
    new = counts["truth_never_trained"]
    text = f"{counts['truth_never_trained_share']:.1%} of the true items were never in training"
    if not new or not ceilings:
        return text
    policy = next(iter(ceilings["known_items"]))
    reached, best = (ceilings[name][policy] for name in ("known_items", "all_items"))
    figures = ", ".join(f"{name} {value:.3f} (of {best[name]:.3f})" for name, value in reached.items())
    text += f": a model that cannot recommend them reaches at most {figures}"
    if validated := counts.get("truth_only_in_validation"):
        text += (
            f"; {share(validated, new)} of them have validation interactions, from which a refitted model has learned"
        )
    return text
