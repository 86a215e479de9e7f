"""The command that compares runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import answer, show, table

# What fits a terminal; the report has the rest.
SHOWN = ("hr@10", "ndcg@10", "recall@20", "mrr@10")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders, for example runs/*")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder for the report.")] = None,
    metric: Annotated[str, typer.Option(help="That pairs are tested on; /unseen: seen items filtered.")] = "ndcg@10",
    published: Annotated[Path | None, typer.Option(help="YAML of others' figures: label: {source, ...}")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Whose evaluations to compare; default: that of the runs' split.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Runs side by side: intervals, paired tests, slices, costs; as a page that needs no network."""
    from rediffuse.comparison import compare as run_comparison
    from rediffuse.comparison.markdown import POLICY_NAMES, sentences
    from rediffuse.config import read_settings

    figures = read_settings(published) if published else None
    found = run_comparison(runs, out, metric=metric, published=figures, protocol=protocol)

    def for_people() -> None:
        for policy in found.facts["protocol"]["seen"]:
            rows = found.summary.filter(policy=policy)
            names = [name for name in SHOWN if name in set(rows["metric"])]
            if found.metric not in names:
                names.insert(0, found.metric)
            listing = table(POLICY_NAMES[policy].capitalize(), "variant", "seeds", *names)
            for column in listing.columns[1:]:
                column.no_wrap, column.overflow = True, "fold"
            for label in rows["variant"].unique(maintain_order=True):
                mine = {row["metric"]: row for row in rows.filter(variant=label).iter_rows(named=True)}
                values: list[Any] = [f"{mine[name]['mean']:.4f}" if name in mine else "" for name in names]
                listing.add_row(label, str(rows.filter(variant=label)["seeds"][0]), *values)
            show(listing)
        if len(found.pairs):
            for sentence in sentences(found.pairs.filter(policy=found.policy)):
                show(sentence)
        if not found.facts["protocol"]["comparable"]:
            show(f"NOT COMPARABLE with other protocols. {found.facts['protocol']['note']}")
        if out is not None:
            show(f"Report: {out / 'report.html'}")

    answer(found.to_dict(), as_json, for_people)
