"""The command that adds new interactions to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich


@app.command()
def update(
    run: Annotated[Path, typer.Argument(help="Folder of a run of a model in closed form, for example theat.")],
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset with the new interactions, from prepare.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The new run folder.")],
    as_json: AsJson = False,
) -> None:
    """Add new interactions, users and items to a run, without starting again."""
    from rediffuse.training import update as run_update

    updated = run_update(run, dataset, out)
    data, added = updated.config["data"], updated.config["updated_from"]["interactions"]
    result = {"run": str(updated.path), "minutes": updated.minutes, "added": added}
    result |= {name: data[name] for name in ("users", "items", "interactions")}

    def print_summary() -> None:
        print_rich(
            f"{added:,} interactions added in {updated.minutes:.2f} minutes: now {data['users']:,} users, "
            f"{data['items']:,} items, {data['interactions']:,} interactions. Next: rediffuse recommend {out}"
        )

    emit(result, as_json, print_summary)
