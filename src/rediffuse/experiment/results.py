"""All per-user results of an experiment as one Parquet file, and its tables made again from that file alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.comparison.compare import WHOLE, pair_rows, summary_rows
from rediffuse.comparison.result import Comparison
from rediffuse.comparison.runs import EvaluatedRun, Variant
from rediffuse.errors import RunError
from rediffuse.evaluation.metrics import flat_name
from rediffuse.files import atomic_write_bytes, parquet_bytes
from rediffuse.table_files import read_parquet, read_parquet_metadata

# The entry of the footer that holds what is no value of a user, and its version.
FOOTER, FORMAT = "rediffuse", 1
_OF_RUN = ("data", "split", "label", "seed")
_OF_USER = ("user", "history_length", "truth_items")


@dataclass(frozen=True)
class Results:
    """The content of results.parquet.

    Attributes:
        table: one row per data, split, label, seed, policy and user (or target), with the user's metrics.
        facts: ``metric`` of the tests; ``settings``, ``runs``, ``failed`` and ``planned`` of the experiment.
    """

    table: pl.DataFrame
    facts: dict[str, Any]

    def comparison(self, setting: dict[str, Any]) -> Comparison:
        """The tables of a setting: metrics with intervals, and paired tests, from values of users alone.

        Its other tables, such as slices, are empty.
        """
        runs: dict[str, list[EvaluatedRun]] = {}
        for run in self.facts["runs"]:
            if (run["data"], run["split"]) == (setting["data"], setting["split"]):
                runs.setdefault(run["label"], []).append(_StoredRun.of(self.table, run, setting["facts"]))
        groups = [Variant(label, tuple(sorted(of, key=lambda run: run.seed))) for label, of in runs.items()]
        name, _, suffix = self.facts["metric"].partition("/")
        policies, empty = setting["facts"]["protocol"]["seen"], pl.DataFrame()
        return Comparison(
            metric=name,
            policy=suffix or "all",
            baseline=None,
            facts=setting["facts"],
            summary=pl.DataFrame(
                [row for p in policies for group in groups for row in summary_rows(group, p)], **WHOLE
            ),
            pairs=pl.DataFrame([row for p in policies for row in pair_rows(groups, name, p, None)], **WHOLE),
            slices=empty,
            costs=empty,
            ablations=empty,
            steps=empty,
            curves=empty,
            published={},
        )


@dataclass(frozen=True)
class _StoredRun(EvaluatedRun):
    """A run of the file."""

    rows: pl.DataFrame = field(default_factory=pl.DataFrame)

    @classmethod
    def of(cls, table: pl.DataFrame, run: dict[str, Any], facts: dict[str, Any]) -> _StoredRun:
        rows = table.filter(pl.col(name) == run[name] for name in _OF_RUN)
        means = {
            policy: {name: _mean(of_policy[name]) for name in _measured(of_policy)} | run["test"]["metrics"][policy]
            for policy in facts["protocol"]["seen"]
            for of_policy in [rows.filter(policy=policy)]
        }
        draws = run["test"]["metrics_by_seed"] or [means]
        test = run["test"] | {"metrics": means, "metrics_by_seed": draws, "counts": facts["counts"]}
        return cls(Path(run["run"]), {"seed": run["seed"]}, test, None, rows)

    @cached_property
    def per_user(self) -> pl.DataFrame:
        """As in the folder of the run, in the same order; metrics in float32."""
        parts = []
        for policy in self.test["metrics"]:
            rows = self.rows.filter(policy=policy)
            if not parts:
                parts.append(rows.select(_OF_USER).rename({"user": "user_id"}))
            parts.append(rows.select(pl.col(name).alias(flat_name(name, policy)) for name in _measured(rows)))
        return pl.concat(parts, how="horizontal")


def _measured(rows: pl.DataFrame) -> list[str]:
    return [name for name in rows.columns if "@" in name and rows[name].null_count() < len(rows)]


def _mean(values: pl.Series) -> float:
    return float(values.cast(pl.Float64).mean())  # pyright: ignore[reportArgumentType]


def rows_of_run(run: dict[str, Any], per_user: pl.DataFrame, policies: Sequence[str]) -> pl.DataFrame:
    """The rows of a run in the file.

    Args:
        run: "data", "split", "label" and "seed".
        per_user: its per-user table.
        policies: the reported ones.
    """
    parts = []
    for policy in policies:
        names = [name.partition("/")[0] for name in per_user.columns if "@" in name]
        names = [name for name in dict.fromkeys(names) if flat_name(name, policy) in per_user.columns]
        texts = [pl.lit(value).cast(pl.Categorical).alias(name) for name, value in (*_texts(run), ("policy", policy))]
        parts.append(
            per_user.select(
                *texts,
                pl.lit(run["seed"], dtype=pl.Int64).alias("seed"),
                pl.col("user_id").cast(pl.String).cast(pl.Categorical).alias("user"),
                pl.col("history_length", "truth_items").cast(pl.UInt32),
                pl.col(flat_name("rank", policy)).cast(pl.UInt32).alias("rank"),
                *(pl.col(flat_name(name, policy)).cast(pl.Float32).alias(name) for name in names),
            )
        )
    return pl.concat(parts)


def _texts(run: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, run[name]) for name in ("data", "split", "label")]


def beside_users(test: dict[str, Any], per_user: pl.DataFrame) -> dict[str, Any]:
    """What an evaluation holds beside values of users: metrics that have none, such as coverage, and draws.

    Args:
        test: the content of test.json.
        per_user: its per-user table.
    """

    def without(metrics: dict[str, dict[str, float]] | None) -> dict[str, dict[str, float]]:
        return {
            policy: {name: value for name, value in means.items() if flat_name(name, policy) not in per_user.columns}
            for policy, means in (metrics or {}).items()
        }

    draws = test["metrics_by_seed"]
    return {
        "metrics": without(test["metrics"]),
        "metrics_with_history": without(test["metrics_with_history"]),
        "metrics_by_seed": draws if len(draws) > 1 else None,
    }


def write_results(path: Path, parts: Sequence[pl.DataFrame], facts: dict[str, Any]) -> None:
    """Write the file.

    Raises:
        StorageError: it cannot be written; an earlier one is unchanged.
    """
    table = pl.concat(parts, how="diagonal")
    atomic_write_bytes(path, parquet_bytes(table, {FOOTER: json.dumps({"format": FORMAT, **facts}, default=str)}))


def read_results(path: Path) -> Results:
    """Read the file.

    Raises:
        RunError: it is missing or damaged, or has another format.
    """
    try:
        facts = json.loads(read_parquet_metadata(path)[FOOTER])
        if facts["format"] != FORMAT:
            raise RunError(f"{path} has format {facts['format']}; this version reads {FORMAT}.", "Run it again.")
        return Results(read_parquet(path), facts)
    except FileNotFoundError:
        raise RunError(f"{path} does not exist.", "Run the experiment first, without --report-only.") from None
    except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path} is damaged ({error}).", "Run the experiment again; finished runs are kept.") from None
