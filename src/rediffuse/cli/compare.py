"""The command that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table

# The metrics that fit a terminal; the report has all.
SHOWN = ("hr@10", "ndcg@10", "recall@20", "mrr@10")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders, for example runs/*")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the report.")] = None,
    metric: Annotated[
        str, typer.Option(help="Metric for paired tests; with /unseen, seen items are filtered.")
    ] = "ndcg@10",
    published: Annotated[
        Path | None, typer.Option(help="YAML file of published figures: label: {source, metric, ...}")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Compare evaluations by this protocol; default: that of the runs' split.")
    ] = None,
    near_duplicates: Annotated[
        Path | None,
        typer.Option(help="Dataset folder of the runs: show users apart whose history is nearly that of another."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs: intervals, paired tests, slices and costs, as a page that works offline."""
    from rediffuse.comparison import compare as run_comparison
    from rediffuse.comparison.markdown import P_COLUMNS, POLICY_NAMES, p_columns, refit_note, sentences
    from rediffuse.comparison.slices import NEAR_DUPLICATES
    from rediffuse.config import read_settings

    figures = read_settings(published) if published else None
    found = run_comparison(
        runs, out, metric=metric, published=figures, protocol=protocol, near_duplicates=near_duplicates
    )

    def print_summary() -> None:
        for policy in found.facts["protocol"]["seen"]:
            rows = found.summary.filter(policy=policy)
            names = [name for name in SHOWN if name in set(rows["metric"])]
            if found.metric not in names:
                names.insert(0, found.metric)
            listing = table(POLICY_NAMES[policy].capitalize(), "variant", "seeds", *names)
            for column in listing.columns[1:]:
                column.no_wrap, column.overflow = True, "fold"
            for label in rows["variant"].unique(maintain_order=True):
                means = dict(rows.filter(variant=label).select("metric", "mean").iter_rows())
                values: list[Any] = [f"{means[name]:.4f}" if name in means else "" for name in names]
                listing.add_row(label, str(rows.filter(variant=label)["seeds"][0]), *values)
            print_rich(listing)
        if near_duplicates is not None:
            rows = found.slices.filter(policy=found.policy, metric=found.metric, by=NEAR_DUPLICATES)
            sizes = dict(rows.select("slice", "size").iter_rows())
            heads = [f"{name} (n = {size:,})" for name, size in sizes.items()]
            listing = table(f"{metric} by {NEAR_DUPLICATES}", "variant", *heads)
            for label in rows["variant"].unique(maintain_order=True):
                listing.add_row(label, *(f"{mean:.4f}" for mean in rows.filter(variant=label)["mean"]))
            print_rich(listing)
        if len(found.pairs):
            pairs = found.pairs.filter(policy=found.policy)
            listing = table(f"Differences in {metric}", "pair", "difference", *P_COLUMNS)
            for column in listing.columns[1:]:
                column.no_wrap, column.overflow = True, "fold"
            for pair in pairs.iter_rows(named=True):
                listing.add_row(f"{pair['first']} - {pair['second']}", f"{pair['difference']:+z.4f}", *p_columns(pair))
            print_rich(listing)
            for sentence in sentences(pairs):
                print_rich(sentence)
        if note := refit_note(found.facts):
            print_rich(note)
        if not found.facts["protocol"]["comparable"]:
            print_rich(f"NOT COMPARABLE with other protocols. {found.facts['protocol']['note']}")
        if out is not None:
            print_rich(f"Report: {out / 'report.html'}")

    emit(found.to_dict(), as_json, print_summary)
