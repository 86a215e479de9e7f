"""`compare`: runs side by side, with intervals, paired tests, slices and costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.arguments import require_options, require_text, wrong_type
from rediffuse.comparison.report import FILES, REPORT, check_folder, write_report
from rediffuse.comparison.result import Comparison
from rediffuse.comparison.runs import EvaluatedRun, Variant, check_comparable, read_runs, variants
from rediffuse.comparison.slices import slices, with_near_duplicates
from rediffuse.comparison.statistics import benjamini_hochberg, holm, mean_interval, p_over_seeds, paired_test
from rediffuse.config import selected_value
from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import as_dataset
from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.evaluation.metrics import POLICIES, flat_name
from rediffuse.objects.folders import output
from rediffuse.runs.run_folder import Run, run_path

HEADLINE = ("hr@10", "ndcg@10", "recall@20", "mrr@10")


def compare(
    runs: Iterable[str | Path | Run] | str | Path | Run,
    out: str | Path | None = None,
    metric: str = "ndcg@10",
    baseline: str | None = None,
    published: dict[str, dict[str, Any]] | None = None,
    protocol: str | None = None,
    near_duplicates: Dataset | str | Path | None = None,
) -> Comparison:
    """Compare evaluated runs of one dataset, split and protocol; write a report if ``out`` is given.

    Runs that differ only in their seed are one variant.

    Args:
        runs: run folders, or what `rediffuse.train` returned, or a single one; each evaluated with `evaluate`. Other
            folders are left out, with a warning.
        out: folder for report.html, report.md, report.json and the tables as Parquet.
        metric: the per-user metric that pairs are tested on; "ndcg@10/unseen" is with seen items filtered.
        baseline: label of a variant; only pairs with it are tested, so p is corrected for fewer tests.
        published: label -> {"source": text, metric: value, ...}; shown as published, never tested.
        protocol: compare evaluations by this protocol, see `evaluate`; None: that of the runs' split.
        near_duplicates: the dataset of the runs, or its folder. Users whose interactions before the test are nearly
            those of another user are a slice of their own; see `rediffuse.data.near_duplicates` for what that costs.

    Raises:
        RunError: a run was not evaluated; runs are not comparable (the error says how they differ); ``out`` exists and
            is not a report; ``near_duplicates`` is not the dataset of the runs.
        ConfigError: the metric was not measured per user, the baseline is unknown, or published figures are not
            numbers.
        MissingExtraError: ``out`` is given, and plotly or jinja2 is not installed.
    """
    place = None if out is None else output("out", out)
    if place is not None:
        place.start(replaces=lambda report: FILES, last=REPORT)
        check_folder(place.folder)  # before the work
    check_published(require_options("published", published, example='{"SASRec": {"ndcg@10": 0.32}}'))
    if not isinstance(metric, str):
        raise wrong_type("metric", metric, "the name of a metric", 'For example: metric="ndcg@10".')
    name, _, suffix = metric.partition("/")
    policy = suffix or "all"
    found = read_runs(_folders(runs), require_text("protocol", protocol))
    check_comparable(found)
    groups = variants(found)
    policies = [p for p in POLICIES if p in found[0].test["protocol"]["seen"]]
    measured = _measured(found)
    if flat_name(name, policy) not in measured:
        raise ConfigError(f"{metric!r} was not measured per user.", did_you_mean(metric, measured))
    if baseline is not None and baseline not in (labels := [group.label for group in groups]):
        raise ConfigError(f"No variant is called {baseline!r}.", did_you_mean(baseline, labels))
    apart = []
    if near_duplicates is not None:
        apart = [with_near_duplicates(found[0], as_dataset("near_duplicates", near_duplicates))]
    comparison = Comparison(
        name,
        policy,
        baseline,
        _facts(groups),
        pl.DataFrame([row for p in policies for group in groups for row in summary_rows(group, p)], **WHOLE),
        pl.DataFrame([row for p in policies for row in pair_rows(groups, name, p, baseline)], **WHOLE),
        pl.DataFrame([row for p in policies for row in slices(groups, measured, p, apart)], **WHOLE),
        pl.DataFrame([_cost(group) for group in groups], **WHOLE),
        pl.DataFrame([row for p in policies for row in _ablations(groups, measured, p)], **WHOLE),
        pl.DataFrame([row for group in groups for row in _steps(group)], **WHOLE),
        pl.DataFrame([row for group in groups for row in _curve(group)], **WHOLE),
        published or {},
    )
    if place is not None:
        write_report(comparison, place.folder)
        place.publish(REPORT)
    return comparison


def _folders(runs: Any) -> list[Path]:
    """The folders of one run or several."""
    if isinstance(runs, str | PathLike | Run):
        runs = [runs]
    if not isinstance(runs, Iterable) or isinstance(runs, Mapping):
        raise wrong_type("runs", runs, "a list of runs", "Give run folders, or what rediffuse.train returned.")
    return [run_path("runs", run) for run in runs]


# Infer column types from all rows: a column may begin with nulls or integers. p_seeds may be all null.
WHOLE: dict[str, Any] = {"infer_schema_length": None, "schema_overrides": {"p_seeds": pl.Float64}}


def _measured(runs: list[EvaluatedRun]) -> list[str]:
    """Flat names of the metrics that every run measured per user."""
    columns = [c for c in runs[0].per_user.columns if "@" in c]
    return [c for c in columns if all(c in run.per_user and not run.per_user[c].is_null().all() for run in runs)]


def check_published(published: dict[str, dict[str, Any]]) -> None:
    """Check published figures: label -> {"source": text, metric: number, ...}.

    Raises:
        ConfigError: they have another form.
    """
    for label, figures in published.items():
        if not isinstance(figures, dict) or not all(
            isinstance(value, str) if name == "source" else isinstance(value, int | float) and math.isfinite(value)
            for name, value in figures.items()
        ):
            raise ConfigError(
                f"Published figures of {label!r} are {figures!r}.",
                'Write a label with its figures, for example "SASRec": {"source": "ICDM 2018", "ndcg@10": 0.32}.',
            )


def _facts(groups: list[Variant]) -> dict[str, Any]:
    run = groups[0].runs[0]
    return {
        "data": run.config["data"],
        "split": {key: run.config["split"][key] for key in ("name", "params", "leak")},
        "protocol": run.test["protocol"],
        "counts": run.test["counts"],
        "ceiling": run.test.get("ceiling"),
        "selected_by": sorted(
            {metric for group in groups for run in group.runs if (metric := run.config["config"].get("metric"))}
        ),
        "refitted": [group.label for group in groups if any(_refitted(run.config) for run in group.runs)],
        "refitted_parts": {
            group.label: part
            for group in groups
            for run in group.runs
            if isinstance(part := run.config["training"].get("refitted"), str)
        },
        "variants": [group.label for group in groups],
        "dates": sorted({run.test["date"] for group in groups for run in group.runs}),
        "hardware": sorted({_hardware(run.test["environment"]) for group in groups for run in group.runs}),
        "packages": run.test["environment"]["packages"],
        "runs": [str(run.path) for group in groups for run in group.runs],
    }


def _refitted(config: dict[str, Any]) -> bool:
    """Whether a run, or a part of it, learned from the validation interactions too, after all choices."""
    return bool(config["training"].get("refitted", False))


def _hardware(environment: dict[str, Any]) -> str:
    cores = f", {environment['cores']} cores" if environment.get("cores") else ""
    cuda = f", {environment['cuda']}" if environment.get("cuda") else ""
    return f"{environment['processor']}{cores}{cuda}"


def summary_rows(group: Variant, policy: str) -> Iterable[dict[str, Any]]:
    """Rows of `Comparison.summary` of a variant."""
    for metric in group.runs[0].test["metrics"][policy]:
        values = group.values(metric, policy)
        if values is None or np.isnan(values).any():
            continue  # not measured, or undefined
        seeds = mean_interval(np.asarray(values))
        draws = [[draw[policy][metric] for draw in run.test["metrics_by_seed"]] for run in group.runs]
        column = flat_name(metric, policy)
        users = None
        if column in group.runs[0].per_user.columns:
            per_user = group.per_user(column)
            known = ~np.isnan(per_user)
            users = mean_interval(per_user[known], _of(group.users, known)) if known.any() else None
        yield {
            "variant": group.label,
            "policy": policy,
            "metric": metric,
            "mean": seeds.mean,
            "seeds": len(values),
            "low": seeds.low,
            "high": seeds.high,
            "sampling_seeds": len(draws[0]),
            "sampling_std": float(np.mean([np.std(d, ddof=1) for d in draws])) if len(draws[0]) > 1 else None,
            "users_low": users and users.low,
            "users_high": users and users.high,
            "with_history": _with_history(group, metric, policy),
        }


def _of(users: NDArray[np.int64] | None, chosen: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """The users of some rows, as `Variant.users` has them."""
    return None if users is None else users[chosen]


def _with_history(group: Variant, metric: str, policy: str) -> float | None:
    """The mean over the users with a history; None if there are none, or it was not measured."""
    column, table = flat_name(metric, policy), group.runs[0].per_user
    if column in table.columns and "history_length" in table.columns:
        values = group.per_user(column)[table["history_length"].to_numpy() > 0]
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else None
    found = [(run.test.get("metrics_with_history") or {}).get(policy, {}).get(metric) for run in group.runs]
    return None if None in found else float(np.mean(found))


def pair_rows(groups: list[Variant], metric: str, policy: str, baseline: str | None) -> list[dict[str, Any]]:
    """Rows of `Comparison.pairs` of a policy."""
    values = {group.label: group.per_user(flat_name(metric, policy)) for group in groups}
    by_label = {group.label: group for group in groups}
    rows = []
    for first, second in itertools.combinations(values, 2):
        if baseline not in (None, first, second):
            continue
        if first == baseline:
            first, second = second, first  # differences are minus the baseline
        test = paired_test(values[first], values[second], groups[0].users)  # all have the same rows
        rows.append(
            {
                "policy": policy,
                "first": first,
                "second": second,
                "difference": test.difference.mean,
                "low": test.difference.low,
                "high": test.difference.high,
                "effect": test.effect,
                "p": test.p,
                "users": test.users,
                "p_seeds": _p_seeds(by_label[first], by_label[second], metric, policy),
            }
        )
    p_values = [row["p"] for row in rows]
    for row, by_holm, by_share in zip(rows, holm(p_values), benjamini_hochberg(p_values), strict=True):
        row |= {"p_holm": by_holm, "p_fdr": by_share}
    return rows


def _p_seeds(first: Variant, second: Variant, metric: str, policy: str) -> float | None:
    """p between the training seeds of two variants; None where there is nothing to test, see `p_over_seeds`."""
    values, others = first.values(metric, policy), second.values(metric, policy)
    if values is None or others is None or np.isnan([*values, *others]).any():
        return None  # not measured, or undefined
    return p_over_seeds(values, others)


def _cost(group: Variant) -> dict[str, Any]:
    training, tests = [run.config["training"] for run in group.runs], [run.test for run in group.runs]

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return {
        "variant": group.label,
        "train_minutes": mean([t["minutes"] for t in training]),
        "best_epoch": mean([t["best_epoch"] for t in training]),
        "users_per_second": mean([t["users_per_second"] for t in tests]),
        "peak_memory_mib": mean([t.get("peak_memory_mib") for t in training]),
        "parameters": training[0]["parameters"],
    }


def _ablations(groups: list[Variant], measured: list[str], policy: str) -> Iterable[dict[str, Any]]:
    """Each diffusion variant minus the variant that differs from it only in the option `diffusion`."""
    for group in groups:
        if group.options.get("diffusion") is not True:
            continue
        for other in groups:
            alike = other.model == group.model and other.learned_from == group.learned_from
            if alike and other.options == group.options | {"diffusion": False}:
                for metric in (name for name in HEADLINE if flat_name(name, policy) in measured):
                    column = flat_name(metric, policy)
                    test = paired_test(group.per_user(column), other.per_user(column), group.users)
                    yield {
                        "policy": policy,
                        "variant": group.label,
                        "ablation": other.label,
                        "metric": metric,
                        "with_diffusion": float(group.per_user(column).mean()),
                        "without": float(other.per_user(column).mean()),
                        **{f"difference_{k}": v for k, v in asdict(test.difference).items()},
                        "p": test.p,
                        "p_seeds": _p_seeds(group, other, metric, policy),
                    }


def _steps(group: Variant) -> Iterable[dict[str, Any]]:
    curves = [run.config["resolved"].get("metric_by_steps") for run in group.runs]
    if None in curves:
        return
    for steps in curves[0]:
        value = float(np.mean([curve[steps] for curve in curves]))
        yield {
            "variant": group.label,
            "sampling_steps": int(steps),
            "metric": group.options["metric"],
            "value": value,
            "chosen": [run.config["resolved"].get("sampling_steps") for run in group.runs],
        }


def _curve(group: Variant) -> Iterable[dict[str, Any]]:
    """Validation metric by minutes of training, at every validation of the first seed."""
    seconds = 0.0
    for record in group.runs[0].epochs:
        seconds += record["seconds"]
        if group.options["metric"] in (record.get("validation") or {}):
            yield {
                "variant": group.label,
                "epoch": record["epoch"],
                "minutes": seconds / 60,
                "metric": group.options["metric"],
                "value": selected_value(record["validation"], group.options["metric"]),
            }
