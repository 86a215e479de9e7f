"""The command that evaluates a run on the test subset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, rank, table
from rediffuse.cli.rules import parse_max_per

SHOWN_METRICS = (
    *(f"{kind}@{k}" for kind in ("hr", "ndcg") for k in (5, 10, 20)),
    *("recall@20", "mrr@10", "coverage@10", "gini@10", "novelty@10", "diversity@10"),
    *("popularity@10", "popularity_lift@10"),
)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    dataset: Annotated[Path, typer.Argument(help="Folder of the dataset it was trained on.")],
    protocol: Annotated[
        str | None, typer.Option(help="Such as paper:diffrec or sampled-100; default: that of the run's split.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampling noise of a stochastic model.")] = 0,
    sampling_seeds: Annotated[int, typer.Option(min=1, help="Number of sampling seeds to average over.")] = 1,
    max_per: Annotated[
        list[str] | None, typer.Option(help="Also measure lists with at most N items of one value: category=2.")
    ] = None,
    diversity: Annotated[float, typer.Option(help="Also measure lists that are diversified, 0 to 1.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run on the test subset, and write the result into its folder."""
    from rediffuse.comparison import evaluate
    from rediffuse.data.loading import load_dataset

    seeds = range(seed, seed + sampling_seeds)
    rules = {"max_per": parse_max_per(max_per), "diversity": diversity}
    result = evaluate(run, load_dataset(dataset), protocol=protocol, seeds=seeds, **rules)

    def print_summary() -> None:
        rules, counts = result["protocol"], result["counts"]
        print_rich(_metrics_table(result["metrics"], f"Test of {run} ({result['split']}, protocol {rules['name']})"))
        if (reranked := result.get("reranked")) is not None:
            print_rich(_metrics_table(reranked["metrics"], "Re-ranked lists"))
            print_rich(_metrics_table(reranked["difference"], "Difference"))
        inputs = "are" if rules["validation_is_input"] else "are not"
        print_rich(
            f"{counts['users']:,} users, {counts['items']:,} items; {counts['cold_users']:,} users without a history; "
            f"{counts['truth_never_trained_share']:.1%} of the true items were never in training; "
            f"{result['users_per_second']:,.0f} users/s. Validation interactions {inputs} part of the histories."
        )
        if not rules["comparable"]:
            print_rich("NOT COMPARABLE with figures of other protocols.")
        for remark in (rules["note"], result["leak"]):
            if remark:
                print_rich(f"Note: {remark}")

    if rank() == 0:
        emit(result, as_json, print_summary)


def _metrics_table(metrics: dict[str, dict[str, float]], title: str) -> Any:
    labels = {"all": "seen items kept", "unseen": "seen items filtered"}
    listing = table(title, "metric", *(labels[policy] for policy in metrics))
    for name in (name for name in SHOWN_METRICS if all(name in values for values in metrics.values())):
        shown = ".1f" if name.startswith("popularity@") else ".4f"
        listing.add_row(name, *(format(values[name], shown) for values in metrics.values()))
    return listing
