"""The command that adds newer interactions to the histories of a run."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich


@app.command("update-histories")
def update_histories(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    interactions: Annotated[Path, typer.Argument(help="A table of newer interactions, or the folder of a dataset.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new run folder.")],
    user: Annotated[str, typer.Option(help="Column of user ids.")] = "user_id",
    item: Annotated[str, typer.Option(help="Column of item ids.")] = "item_id",
    time: Annotated[str | None, typer.Option(help="Column of times; default: timestamp, if there is one.")] = None,
    time_format: Annotated[str | None, typer.Option(help='Form of times in text, for example "%d/%m/%Y".')] = None,
    as_json: AsJson = False,
) -> None:
    """Add newer interactions to the histories of a run, without training."""
    from rediffuse.errors import RediffuseWarning
    from rediffuse.recommender.fresh_histories import update_histories as run_update

    made, found = run_update(run, interactions, out, user=user, item=item, time=time, time_format=time_format)
    for message in found.remarks():
        warnings.warn(message, RediffuseWarning, stacklevel=2)
    end = made.config["data"].get("histories_end")
    result = {
        "run": str(made.path),
        "updated_from": str(run),
        "added": found.added,
        "repeated": found.repeated,
        "new_users": found.new_users,
        "unknown_items": len(found.unknown_items),
        "users": len(found.contents.user_ids),
        "histories_end": end,
        "notes": list(found.notes),
    }

    def print_summary() -> None:
        ended = f" Histories end at {end}." if end else ""
        print_rich(
            f"{found.added:,} interactions added, with {found.new_users:,} new users; the model is that of {run}."
            f"{ended} Next: rediffuse recommend {out}",
            *(f"- {note}" for note in found.notes),
        )

    emit(result, as_json, print_summary)
