"""The command that describes a dataset and its splits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich, table


@app.command("data report")
def data_report(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder.")],
    splits: Annotated[
        list[str] | None,
        typer.Option("--split", help="A split to report; may be repeated. Default: those that the data allow."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a dataset: duplicates, popularity, times, and what each split leaves out and leaks."""
    from rediffuse.data.report import data_report as make_report

    found = make_report(dataset, splits or None)

    def print_tables() -> None:
        for title, heads, rows in found.tables():
            listing = table(title, *heads)
            for row in rows:
                listing.add_row(*row)
            listing.columns[0].no_wrap = True
            print_rich(listing)
        print_rich(*(f"- {remark}" for remark in found.remarks()))

    emit(found.to_dict(), as_json, print_tables)
