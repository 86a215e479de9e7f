"""The command that evaluates a run on the test subset."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import answer, process, show, table

SHOWN_METRICS = (
    *(f"{kind}@{k}" for kind in ("hr", "ndcg") for k in (5, 10, 20)),
    *("recall@20", "mrr@10", "coverage@10", "gini@10", "novelty@10", "diversity@10"),
    *("popularity@10", "popularity_lift@10"),
)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    dataset: Annotated[Path, typer.Argument(help="The dataset it was trained on.")],
    protocol: Annotated[
        str | None, typer.Option(help="paper:diffurec, paper:diffrec or sampled-N; default: the run's split, in full.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the noise of a stochastic model.")] = 0,
    sampling_seeds: Annotated[int, typer.Option(min=1, help="Seeds of that noise to average over.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Metrics on the test subset, over the whole catalogue unless asked otherwise; written to the run folder as well."""
    from rediffuse.comparison import evaluate
    from rediffuse.data.loading import load_dataset

    seeds = range(seed, seed + sampling_seeds)
    facts = evaluate(run, load_dataset(dataset), protocol=protocol, seeds=seeds)

    def for_people() -> None:
        rules, counts = facts["protocol"], facts["counts"]
        show(_metrics_table(facts["metrics"], f"Test of {run} ({facts['split']}, protocol {rules['name']})"))
        inputs = "are" if rules["validation_is_input"] else "are not"
        show(
            f"{counts['users']:,} users, {counts['items']:,} items; {counts['cold_users']:,} users without history; "
            f"{counts['truth_never_trained_share']:.1%} of the true items were never seen in training; "
            f"{facts['users_per_second']:,.0f} users/s. Validation events {inputs} part of the histories."
        )
        if not rules["comparable"]:
            show("NOT COMPARABLE with figures of other protocols.")
        for remark in (rules["note"], facts["leak"]):
            if remark:
                show(f"Note: {remark}")

    if process() == 0:
        answer(facts, as_json, for_people)


def _metrics_table(metrics: dict[str, dict[str, float]], title: str) -> Any:
    labels = {"all": "seen items kept", "unseen": "seen items filtered"}
    listing = table(title, "metric", *(labels[policy] for policy in metrics))
    for name in (name for name in SHOWN_METRICS if all(name in values for values in metrics.values())):
        shown = ".1f" if name.startswith("popularity@") else ".4f"
        listing.add_row(name, *(format(values[name], shown) for values in metrics.values()))
    return listing
