"""The tables of docs/reproductions.md, made of the stored results; `benchmarks.tables.page` writes them."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.reproduce.rows import ROWS, Row
from benchmarks.reproduce.train import HONEST
from benchmarks.tables import users
from benchmarks.tables.variants import VARIANTS
from rediffuse.table_files import read_parquet

# The share of a published value within which it counts as reproduced.
WITHIN = 0.03
_WORDS = {"capped_recall": "HR (capped recall)", "hr": "HR", "ndcg": "NDCG", "recall": "Recall"}


def overview() -> str:
    """One line per row: published, ours, the default, the best floor, the verdict."""
    lines = [
        "| system, data | metric | published | `paper` preset | seeds | default | best floor | verdict |",
        "|---|---|--:|--:|--:|--:|---|---|",
    ]
    for row in ROWS:
        means, given = _means(row), verdict(row)
        for metric in row.metrics:
            found = {variant: _cell(row, means, variant, metric) for variant in ("", *row.variants)}
            measured = {
                name: means[place]["mean"] for name in row.floors if (place := (name, *_place(row, metric))) in means
            }
            floor = max(measured, key=measured.__getitem__, default="")
            published = f"{100 * row.published[metric]:.2f}" if metric in row.published else ""
            seeds = len([run for run in _stored(row) if run["variant"] == row.paper]) or ""
            cells = [row.title, _head(metric), published, found[row.paper], seeds, found.get(_default(row), "")]
            floor_text = f"{found[floor]} ({floor})" if floor else ""
            lines.append(f"| {' | '.join(map(str, [*cells, floor_text, given]))} |")
    return "\n".join(lines)


def verdict(row: Row) -> str:
    """In a word or two: reproduced (within 3 %), above, below, open (training was stopped), or what is missing."""
    means = _means(row)
    runs = [run for run in _stored(row) if run["variant"] == row.paper]
    if not runs:
        return "not run"
    if not row.published:
        return "no figure"
    ours = [means[(row.paper, *_place(row, metric))]["mean"] for metric in row.published]
    ratios = [value / published - 1 for value, published in zip(ours, row.published.values(), strict=True)]
    if all(abs(ratio) <= WITHIN for ratio in ratios):
        return "**reproduced**"
    if min(ratios) >= -WITHIN:
        return "**above**"
    return "**below**" if all(run["finished"] for run in runs) else "open"


def _default(row: Row) -> str | None:
    """The variant with our defaults, which is the first of the others; None if there is none."""
    first = next(iter(row.others), None)
    if first is None or VARIANTS[first].preset or VARIANTS[first].on != VARIANTS[row.paper].on:
        return None
    return first


def section(row: Row) -> str:
    """The table of a row, with the curve of a `paper` run that did not end itself."""
    stored = _stored(row)
    if not stored:
        return f"Protocol of the paper: {row.words}. Source: {row.source}. {row.why or 'Not run.'}"
    content, means = _read(row.name), _means(row)
    stamp = content["stamp"]
    honest = [metric for metric in row.honest if row.protocol != HONEST or metric not in row.metrics]
    heads = [_head(metric) for metric in row.metrics] + [f"{_head(metric)}, honest" for metric in honest]
    lines = [
        f"{stamp['date']}, {stamp['processor']}, {stamp['cores']} cores, {stamp['precision']}, "
        f"commit {stamp['commit'][:7]}. {_sentence(row)}",
        "",
        f"| | seeds | {' | '.join(heads)} | min | best epoch | ended |",
        "|---|" + "--:|" * (len(heads) + 3) + "---|",
    ]
    if row.published:
        values = [f"*{100 * row.published[m]:.2f}*" if m in row.published else "" for m in row.metrics]
        lines.append(f"| *published* | | {' | '.join([*values, *['' for _ in honest]])} | | | |")
    for variant in row.variants:
        runs = [run for run in stored if run["variant"] == variant]
        if not runs:
            continue
        values = [_cell(row, means, variant, metric) for metric in row.metrics]
        values += [_cell(row, means, variant, metric, HONEST) for metric in honest]
        lines.append(f"| {' | '.join([runs[0]['label'], str(len(runs)), *values, *_costs(runs)])} |")
    for run in stored:
        if run["variant"] == row.paper and not run["finished"]:
            points = ", ".join(f"{100 * value:.2f} ({epoch})" for epoch, value in run["curve"])
            lines += ["", f"Validation {run['selected_by']} of seed {run['seed']} by epoch: {points}."]
    if row.why:
        lines += ["", row.why]
    return "\n".join(lines)


def _sentence(row: Row) -> str:
    return f"Protocol of the paper: {row.words}. Source: {row.source}."


def _costs(runs: list[dict[str, Any]]) -> list[str]:
    """Mean minutes, mean best epoch, and how the trainings ended, for models that are trained by gradient."""
    if not any(run["best_epoch"] for run in runs):
        return ["", "", ""]
    minutes, epoch = (sum(run[name] for run in runs) / len(runs) for name in ("minutes", "best_epoch"))
    return [f"{minutes:.1f}", f"{epoch:.0f}", ", ".join(sorted({_end(run) for run in runs}))]


def _end(run: dict[str, Any]) -> str:
    if not run["finished"]:
        return "time limit"
    return "all epochs" if " are done" in (run["stopped"] or "") else "early stopping"


def _place(row: Row, metric: str, protocol: str | None = None) -> tuple[str, str, str]:
    """Protocol, policy and name of a metric in the results per user."""
    name, _, policy = metric.partition("/")
    return protocol or row.protocol, policy or "all", name


def _cell(row: Row, means: dict[Any, Any], variant: str, metric: str, protocol: str | None = None) -> str:
    found = means.get((variant, *_place(row, metric, protocol)))
    if found is None:
        return ""
    return f"{100 * found['mean']:.2f}" + (
        f" ±{50 * (found['high'] - found['low']):.2f}" if found["low"] is not None else ""
    )


def _head(metric: str) -> str:
    name, _, policy = metric.partition("/")
    kind, _, k = name.partition("@")
    return f"{_WORDS[kind]}@{k}" + (" filtered" if policy else "")


def _stored(row: Row) -> list[dict[str, Any]]:
    content = _read(row.name)
    return content["variants"] if content else []


def _read(name: str) -> dict[str, Any]:
    path = RESULTS / f"reproduce-{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _means(row: Row) -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """(variant, protocol, policy, metric) -> the mean over users and seeds, with its interval over seeds."""
    path = RESULTS / f"reproduce-{row.name}.parquet"
    if not path.exists():
        return {}
    found = users.summary(read_parquet(path), _read(row.name)["users"])
    return {(one["label"], one["protocol"], one["policy"], one["metric"]): one for one in found}
