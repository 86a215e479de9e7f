"""Results per user, stored beside a result file, from which the tables are made again without the runs.

One row per user (or target), policy, protocol and run, with the metrics that tables show; a user for whom all of them
are 0 is left out. Values are means over the draws of a stochastic model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from rediffuse.comparison.runs import EvaluatedRun
from rediffuse.comparison.statistics import mean_interval
from rediffuse.evaluation.metrics import flat_name

METRICS = ("hr@10", "ndcg@10", "mrr@10", "recall@20", "capped_recall@10")
_RUN = ("label", "protocol", "policy")


def stored(runs: Iterable[tuple[str, EvaluatedRun]]) -> pl.DataFrame:
    """The frame of labelled runs: label, protocol, policy, seed, row (of the user in the task), and the metrics."""
    return pl.concat(_of_policy(label, run, policy) for label, run in runs for policy in run.test["protocol"]["seen"])


def _of_policy(label: str, run: EvaluatedRun, policy: str) -> pl.DataFrame:
    values = (label, run.test["protocol"]["name"], policy)
    frame = run.per_user.select(
        *(pl.lit(value, pl.Categorical).alias(name) for name, value in zip(_RUN, values, strict=True)),
        pl.lit(run.seed, pl.Int16).alias("seed"),
        pl.int_range(pl.len(), dtype=pl.Int32).alias("row"),
        *(pl.col(flat_name(name, policy)).cast(pl.Float32).alias(name) for name in METRICS),
    )
    return frame.filter(pl.any_horizontal(pl.col(METRICS) != 0))


def summary(frame: pl.DataFrame, users: int) -> list[dict[str, Any]]:
    """Per label, protocol and policy: the mean of each metric over users and seeds, with its interval over seeds.

    Args:
        frame: as from `stored`.
        users: number of users (or targets) of the task.
    """
    sums = frame.group_by([*_RUN, "seed"], maintain_order=True).agg(pl.col(METRICS).cast(pl.Float64).sum() / users)
    found = []
    for values, of_seeds in sums.group_by(_RUN, maintain_order=True):
        for metric in METRICS:
            interval = mean_interval(of_seeds[metric].to_numpy())
            named = dict(zip(_RUN, map(str, values), strict=True))
            found.append(named | {"metric": metric, "seeds": len(of_seeds)} | interval.to_dict())
    return found


def replaced(content: Mapping[str, Any], frame: pl.DataFrame) -> dict[str, Any]:
    """A stored comparison whose accuracy comes from the results per user; what they do not hold stays."""
    counts = content["facts"]["counts"]
    again = {
        (row["label"], row["policy"], row["metric"]): row
        for row in summary(frame, counts.get("targets", counts["users"]))
    }
    rows = []
    for row in content["summary"]:
        fresh = again.get((row["variant"], row["policy"], row["metric"]), {})
        rows.append(row | {name: fresh[name] for name in ("mean", "low", "high", "seeds") if fresh})
    return {**content, "summary": rows}
