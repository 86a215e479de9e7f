"""The command that adds items to the catalogue of a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich


@app.command("add-items")
def add_items(
    run: Annotated[Path, typer.Argument(help="Folder of a run that has learned from item features.")],
    items: Annotated[Path, typer.Argument(help="A table of new items, with the columns of the features.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new run folder.")],
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    as_json: AsJson = False,
) -> None:
    """Add new items to a run, which ranks them by their features at once, without training."""
    from rediffuse.errors import RediffuseWarning
    from rediffuse.recommender.new_items import add_items as run_add

    made, found = run_add(run, items, out, item=item)
    for message in found.remarks():
        warnings.warn(message, RediffuseWarning, stacklevel=2)
    result = {
        "run": str(made.path),
        "added_to": str(run),
        "added": found.added,
        "repeated": found.repeated,
        "items": made.config["data"]["items"],
    }

    def print_summary() -> None:
        print_rich(
            f"{found.added:,} items added: now {result['items']:,}; the model is that of {run}. "
            f"Next: rediffuse recommend {out}"
        )

    emit(result, as_json, print_summary)
