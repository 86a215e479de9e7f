"""Metrics of recommendation lists of any origin, given as tables in the caller's own ids."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import narwhals.stable.v1 as nw
import numpy as np
import polars as pl

from rediffuse import forks
from rediffuse.arguments import described
from rediffuse.display import Displayed
from rediffuse.errors import DataError, RediffuseWarning
from rediffuse.evaluation.metrics import accuracy_values, parse_metrics
from rediffuse.frames import Frame, Kind, as_kind, kind_of

_ID_COLUMNS = ("user_id", "item_id")


class EvaluationResult(Displayed, Mapping[str, float]):
    """The result of `evaluate_lists`: a mapping of metric -> mean over users.

    Attributes:
        per_user: ``user_id`` and one column per metric; one row per user of the truth, in its order. A frame of the
            library of the recommendations (or else the truth) if that is pandas or pyarrow, else of polars.
        counts: what the means are over, and what was left out; the keys are explained in `docs/evaluation.md`.
    """

    def __init__(self, per_user: pl.DataFrame, counts: dict[str, int], kind: Kind = "polars") -> None:
        self.per_user: Frame = as_kind(per_user, kind)
        self.counts = counts
        self._means = {name: float(per_user[name].mean()) for name in per_user.columns[1:]}  # pyright: ignore

    def __getitem__(self, metric: str) -> float:
        return self._means[metric]

    def __iter__(self) -> Iterator[str]:
        return iter(self._means)

    def __len__(self) -> int:
        return len(self._means)

    def to_dict(self) -> dict[str, Any]:
        """Means and counts, ready for JSON."""
        return {"metrics": dict(self._means), "counts": dict(self.counts)}

    def _display(self) -> tuple[str, dict[str, Any]]:
        return f"EvaluationResult, {self.counts['users']:,} users", self._means

    def __str__(self) -> str:
        width = max(map(len, [*self._means, *self.counts]))
        means = [f"{name:<{width}}  {value:>10.4f}" for name, value in self._means.items()]
        counts = [f"{name:<{width}}  {count:>10,}" for name, count in self.counts.items()]
        return "\n".join([*means, *counts])


def _from_mapping(rows: Mapping[Any, Any], what: str, ordered: bool) -> pl.DataFrame:
    """A mapping of user -> items as a table; ``rank`` is the position in the list."""
    users: list[Any] = []
    items: list[Any] = []
    ranks: list[int] = []
    for user, listed in rows.items():
        if isinstance(listed, (str, bytes)) or not hasattr(listed, "__len__"):
            raise DataError(
                f"{what} of user {user!r} is {described(listed)}, not a list.",
                "Give a list of item ids for each user.",
            )
        if ordered and isinstance(listed, (AbstractSet, Mapping)):
            raise DataError(
                f"{what} of user {user!r} is {described(listed)}, which has no order.",
                "Give a list of item ids, best first.",
            )
        values = listed.tolist() if isinstance(listed, np.ndarray) else list(listed)
        users.extend([user] * len(values))
        items.extend(values)
        ranks.extend(range(1, len(values) + 1))
    try:
        return pl.DataFrame({"user_id": pl.Series(users), "item_id": pl.Series(items), "rank": ranks})
    except (TypeError, pl.exceptions.PolarsError, OverflowError) as error:
        raise DataError(
            f"The ids in the {what} are of several types ({error}).",
            "Use only integers or only strings for one kind of id.",
        ) from None


def _as_polars(table: Any, what: str, columns: tuple[str, ...], ordered: bool) -> pl.DataFrame:
    """The table as a polars frame, with those of ``columns`` that it has."""
    if isinstance(table, Mapping):
        return _from_mapping(table, what, ordered)
    try:
        frame = nw.from_native(table)
    except TypeError:
        raise DataError(
            f"{what} is {described(table)}, not a table.",
            "Give a polars, pandas or pyarrow table with user_id and item_id, or a dict user -> list.",
        ) from None
    except Exception as error:  # narwhals raises its own errors about column names
        raise DataError(
            f"The {what} cannot be read as a table: {' '.join(str(error).split())}",
            "Give every column a name of its own.",
        ) from None
    names = frame.collect_schema().names()
    missing = [name for name in _ID_COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"The {what} have no column {' and no column '.join(missing)}; they have {', '.join(map(str, names))}.",
            "Rename the columns to user_id and item_id.",
        )
    frame = frame.select([name for name in columns if name in names])
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect()
    try:
        try:
            return frame.to_polars()
        except ImportError:  # pandas strings need pyarrow, which may be missing
            return pl.DataFrame({name: frame[name].to_list() for name in frame.columns})
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"The {what} cannot be read as a table of plain columns: {error}",
            "Give ids as one type, integers or strings; a polars or pyarrow table always works.",
        ) from None


def _plain_ids(frame: pl.DataFrame, what: str) -> pl.DataFrame:
    """Both id columns as Int64 or String, without nulls."""
    if frame.is_empty():  # its column types mean nothing
        return pl.DataFrame(schema={name: pl.Int64 if name in _ID_COLUMNS else pl.Float64 for name in frame.columns})
    for name in _ID_COLUMNS:
        ids = frame[name]
        if ids.null_count():
            count, first = ids.null_count(), ids.is_null().arg_max()
            raise DataError(
                f"Column {name} of the {what} has {count} missing values, the first in row {first}.",
                "Drop these rows.",
            )
        if ids.dtype.is_integer():
            try:
                plain = ids.cast(pl.Int64)
            except pl.exceptions.InvalidOperationError:
                raise DataError(f"Column {name} of the {what} has ids of 2**63 or more.", "Use strings.") from None
        elif ids.dtype in (pl.String, pl.Categorical, pl.Enum):
            plain = ids.cast(pl.String)
        else:
            raise DataError(
                f"Column {name} of the {what} is of type {ids.dtype}.",
                f"Ids are integers or strings: convert {name} to one of them.",
            )
        frame = frame.with_columns(plain.alias(name))
    return frame


def _same_types(lists: pl.DataFrame, truth: pl.DataFrame) -> pl.DataFrame:
    """The lists, after checking that each id column has the same type as in the truth."""
    for name in _ID_COLUMNS:
        if lists.schema[name] != truth.schema[name]:
            if not len(lists):
                lists = lists.with_columns(pl.col(name).cast(truth.schema[name]))
                continue
            found, expected = (
                f"{'integers' if ids.dtype == pl.Int64 else 'strings'} (for example {ids[0]!r})"
                for ids in (lists[name], truth[name])
            )
            raise DataError(
                f"Column {name} holds {found} in the recommendations and {expected} in the truth.",
                f"Convert {name} in one of the two tables.",
            )
    return lists


def _in_order(lists: pl.DataFrame) -> pl.DataFrame:
    """The lists with columns ``unscored`` (NaN or missing score) and ``key``; ascending in both is best first."""
    column = "rank" if "rank" in lists.columns else "score"
    if column not in lists.columns:
        raise DataError(
            "The recommendations have neither a column rank nor a column score.",
            "Add rank (1 = best) or score (higher = better).",
        )
    if not lists.schema[column].is_numeric():
        raise DataError(f"Column {column} of the recommendations is of type {lists.schema[column]}.", "Give numbers.")
    key = pl.col(column).cast(pl.Float64)
    lists = lists.with_columns(key=key, unscored=(key.is_null() | key.is_nan()))
    if column == "rank":
        if bad := int(lists["unscored"].sum()):
            raise DataError(f"{bad} ranks of the recommendations are missing.", "Give every row a rank, or drop it.")
        wrong = lists.filter(
            (pl.col("key") < 0) | (pl.col("key") != pl.col("key").floor()) | pl.col("key").is_infinite()
        )
        if len(wrong):
            raise DataError(
                f"{len(wrong):,} ranks of the recommendations are negative or not whole, for example "
                f"{wrong[column][0]!r} of user {wrong['user_id'][0]!r}.",
                "Ranks are whole numbers, 1 = best. If these are scores (higher = better), call the column score.",
            )
        return lists.select(*_ID_COLUMNS, "unscored", "key")
    return lists.select(*_ID_COLUMNS, "unscored", key=pl.when("unscored").then(0.0).otherwise(-pl.col("key")))


def evaluate_lists(recommendations: Any, truth: Any, metrics: Sequence[str] = ("hr@10", "ndcg@10")) -> EvaluationResult:
    """Evaluate recommendation lists of any origin. Lists are rated as they are: nothing is filtered.

    The mean is over the users of ``truth``. A user without a list counts as zero; a list of a user without truth is
    left out. Of an item that is in a list twice, the best place counts, and the list closes up. NaN and missing
    scores come after all numbers. Among equal scores (or ranks), true items come last. Only the order of scores or
    ranks matters. `EvaluationResult.counts` counts all of this.

    Args:
        recommendations: a polars, pandas or pyarrow table (or another that narwhals supports) with columns
            ``user_id``, ``item_id`` and ``rank`` (1 = best) or ``score`` (higher = better); if it has both, ``rank``
            counts. Or a dict user -> list of items, best first.
        truth: a table with ``user_id`` and ``item_id``, or a dict user -> items.
        metrics: names such as "hr@10", "ndcg@10", "recall@20", "precision@5", "map@10", "mrr@10".

    Raises:
        DataError: a column is missing or cannot be used, ids are missing or differ in type between the two tables,
            or the truth is empty.
        ConfigError: a metric is unknown.
        RunError: as `forks.enter`.
    """
    forks.enter()
    wanted = parse_metrics(metrics)
    lists = _plain_ids(
        _as_polars(recommendations, "recommendations", (*_ID_COLUMNS, "rank", "score"), ordered=True),
        "recommendations",
    )
    true_rows = _plain_ids(_as_polars(truth, "truth", _ID_COLUMNS, ordered=False).select(_ID_COLUMNS), "truth")
    if not len(true_rows):
        raise DataError("The truth has no rows.", "Give at least one true item of one user.")
    lists = _in_order(_same_types(lists, true_rows))

    users = true_rows.select("user_id").unique(maintain_order=True).with_row_index("user")
    true_items = true_rows.unique().with_columns(hit=True)
    num_true = np.bincount(true_items.join(users, on="user_id")["user"].to_numpy())
    known = lists.join(users, on="user_id")
    ordered = known.join(true_items, on=list(_ID_COLUMNS), how="left").with_columns(pl.col("hit").fill_null(False))
    ordered = ordered.sort("user", "unscored", "key", "hit", "item_id")
    once = ordered.unique(["user", "item_id"], keep="first", maintain_order=True)

    lengths = np.bincount(once["user"].to_numpy(), minlength=len(users))
    starts = np.cumsum(lengths) - lengths
    hits = once.with_row_index("row").filter("hit")
    owners = hits["user"].to_numpy()
    ranks = hits["row"].to_numpy().astype(np.int64) - starts[owners] + 1
    offsets = np.concatenate(([0], np.cumsum(np.bincount(owners, minlength=len(users)))))
    values = accuracy_values(wanted, offsets, ranks, num_true)

    counts = {
        "users": len(users),
        "users_without_list": int((lengths == 0).sum()),
        "users_without_truth": lists.join(users, on="user_id", how="anti")["user_id"].n_unique(),
        "lists_shorter_than_k": int(((lengths > 0) & (lengths < max(metric.k for metric in wanted))).sum()),
        "duplicate_items": len(ordered) - len(once),
        "duplicate_truth": len(true_rows) - len(true_items),
        "nan_scores": int(known["unscored"].sum()),
    }
    if len(lists) and not len(known):
        warnings.warn(
            f"None of the {counts['users_without_truth']} users with recommendations is in the truth, so every "
            f"metric is 0. The first is {lists['user_id'][0]!r}; the first in the truth is "
            f"{users['user_id'][0]!r}.",
            RediffuseWarning,
            stacklevel=2,
        )
    return EvaluationResult(
        users.select("user_id").with_columns(**{n: pl.Series(v) for n, v in values.items()}),
        counts,
        kind_of(recommendations, truth),
    )
