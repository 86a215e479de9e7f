"""The command that evaluates runs on the test subset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, Device, app
from rediffuse.cli.output import emit, print_rich, rank, table
from rediffuse.cli.rules import parse_max_per

# Of several runs side by side.
HEADLINE = ("hr@10", "ndcg@10", "recall@20", "mrr@10")
SHOWN_METRICS = (
    *(f"{kind}@{k}" for kind in ("hr", "ndcg") for k in (5, 10, 20)),
    *("recall@20", "mrr@10", "coverage@10", "gini@10", "novelty@10", "diversity@10", "calibration@10"),
    *("popularity@10", "popularity_lift@10"),
)


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset they were trained on.")],
    protocol: Annotated[
        str | None, typer.Option(help="Such as paper:diffrec or sampled-100; default: that of each run's split.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="What to show, and compute besides the usual metrics: ndcg@10,recall@50.")
    ] = None,
    k: Annotated[
        str | None, typer.Option("--k", help="Cut-offs of metrics named without one (hr, ndcg, recall, mrr): 5,10,50.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling noise of a stochastic model.")] = 0,
    sampling_seeds: Annotated[int, typer.Option(min=1, help="Number of sampling seeds to average over.")] = 1,
    max_per: Annotated[
        list[str] | None, typer.Option(help="Also measure lists with at most N items of one value: category=2.")
    ] = None,
    diversity: Annotated[
        float | None, typer.Option(help="Also measure lists that are diversified, 0 to 1, as by recommend.")
    ] = None,
    diversity_by: Annotated[str | None, typer.Option(help="Column that they are diversified by.")] = None,
    slate: Annotated[str | None, typer.Option(help="How they are judged: mmr, dpp or calibrated.")] = None,
    device: Device = "cpu",
    as_json: AsJson = False,
) -> None:
    """Evaluate runs on the test subset, and write the results into their folders."""
    from rediffuse.comparison import evaluate
    from rediffuse.data.loading import load_dataset
    from rediffuse.runs.run_folder import read_config, run_path

    wanted = _metric_names(metrics, k)
    for run in runs:  # refuse a wrong folder before the work
        read_config(run_path("RUN", run, writes=True))
    seeds, data = range(seed, seed + sampling_seeds), load_dataset(dataset)
    rules = {
        "max_per": parse_max_per(max_per),
        "diversity": diversity,
        "diversity_by": diversity_by,
        "slate": slate,
        "device": device,
    }
    results = [evaluate(run, data, protocol=protocol, seeds=seeds, metrics=wanted, **rules) for run in runs]

    def print_summary() -> None:
        if len(results) > 1:
            print_rich(_side_by_side(results, wanted or HEADLINE))
        for run, result in zip(runs, results, strict=True):
            rules = result["protocol"]
            if len(results) == 1:
                title = f"Test of {run} ({result['split']}, protocol {rules['name']})"
                print_rich(_metrics_table(result["metrics"], title, wanted or SHOWN_METRICS))
            if result["counts"]["cold_users"] and result["metrics_with_history"]:
                title = f"Those with a history, test of {run}"
                print_rich(_metrics_table(result["metrics_with_history"], title, wanted or HEADLINE))
            if len(results) == 1:
                for policy in result["metrics"]:
                    _print_slices(result, policy, wanted or HEADLINE)
            if (reranked := result.get("reranked")) is not None:
                shown = wanted or (SHOWN_METRICS if len(results) == 1 else HEADLINE)
                print_rich(_metrics_table(reranked["metrics"], f"Re-ranked lists of {run}", shown))
                print_rich(_metrics_table(reranked["difference"], "Difference", shown))
            _print_facts(result, "" if len(results) == 1 else f"{run}: ")

    if rank() == 0:
        emit(results[0] if len(results) == 1 else {"evaluations": results}, as_json, print_summary)


def _metric_names(metrics: str | None, k: str | None) -> list[str]:
    """The metrics that were asked for; none if the usual ones are shown.

    Raises:
        ConfigError: a metric is unknown, or has no cut-off.
    """
    from rediffuse.errors import ConfigError
    from rediffuse.evaluation.metrics import MEASURED, parse_metrics

    if metrics is None and k is None:
        return []
    names = [name.strip() for name in (metrics or "hr,ndcg,recall,mrr").split(",") if name.strip()]
    cuts = [cut.strip() for cut in (k or "").split(",") if cut.strip()]
    if cuts and all("@" in name for name in names):
        raise ConfigError(f"--k {k} has no effect, as all metrics have a cut-off.", "Name one without: --metrics ndcg")
    named = [full for name in names for full in ([name] if "@" in name or not cuts else [f"{name}@{c}" for c in cuts])]
    return [str(metric) for metric in parse_metrics(named, MEASURED)]


def _print_slices(result: dict[str, Any], policy: str, names: Sequence[str]) -> None:
    """A table of new and known users and items, and of items by age, if there are several of a kind."""
    kinds = [row["by"] for row in result["slices"]]
    rows = [row for row in result["slices"] if kinds.count(row["by"]) > 1]
    names = [name for name in names if all(name in row["metrics"][policy] for row in rows)]
    if not rows or not names:
        return
    what = "targets" if "targets" in result["counts"] else "users"
    listing = table(f"By users and true items, {LABELS[policy]}", "slice", what, "true items", *names)
    for row in rows:
        values = (_shown(name, row["metrics"][policy][name]) for name in names)
        listing.add_row(row["slice"], f"{row['size']:,}", f"{row['truth_items']:,}", *values)
    print_rich(listing)


def _print_facts(result: dict[str, Any], about: str) -> None:
    from rediffuse.comparison.slices import ceiling_text
    from rediffuse.data.cold_users import users_text, without_text

    rules, counts = result["protocol"], result["counts"]
    inputs = "are" if rules["validation_is_input"] else "are not"
    what = "targets" if "targets" in counts else "users"
    print_rich(
        f"{about}{users_text(counts)}, {counts['items']:,} items; "
        f"{without_text(counts)}; "
        f"{result['users_per_second']:,.0f} {what}/s. Validation interactions {inputs} part of the histories."
    )
    print_rich(f"{about}{ceiling_text(counts, result['ceiling'])}.")
    if seen := counts["truth_in_history"]:
        print_rich(
            f"{seen / counts['truth_items']:.1%} of the true items are in the user's history: "
            "with seen items filtered, these cannot be predicted."
        )
    if not rules["comparable"]:
        print_rich("NOT COMPARABLE with figures of other protocols.")
    for remark in (rules["note"], result["leak"]):
        if remark:
            print_rich(f"Note: {remark}")


LABELS = {"all": "seen items kept", "unseen": "seen items filtered"}


def _side_by_side(results: list[Any], names: Sequence[str]) -> Any:
    """One table of several evaluations: a row per run and policy."""
    listing = table("Test", "run", "protocol", "seen items", *names)
    for result in results:
        for policy, values in result["metrics"].items():
            shown = (_shown(name, values[name]) if name in values else "" for name in names)
            seen = LABELS[policy].removeprefix("seen items ")
            listing.add_row(result["run"], result["protocol"]["name"], seen, *shown)
    return listing


def _metrics_table(metrics: dict[str, dict[str, float]], title: str, names: Sequence[str]) -> Any:
    listing = table(title, "metric", *(LABELS[policy] for policy in metrics))
    for name in (name for name in names if all(name in values for values in metrics.values())):
        listing.add_row(name, *(_shown(name, values[name]) for values in metrics.values()))
    return listing


def _shown(name: str, value: float) -> str:
    return format(value, ".1f" if name.startswith("popularity@") else ".4f")
