"""The command that uploads a run to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rediffuse.cli.app import AsJson, app
from rediffuse.cli.output import emit, print_rich


@app.command()
def push(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    repo: Annotated[str, typer.Argument(help="user/name on the Hugging Face hub; created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Create it as a private one.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch; created if it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
    with_histories: Annotated[
        bool, typer.Option("--with-histories", help="Publish the ids and histories of all users too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a run to the Hugging Face hub; without --with-histories, the copy holds no users."""
    from rediffuse.runs.push import push as run_push

    address = run_push(run, repo, private=private, revision=revision, message=message, with_histories=with_histories)
    emit(
        {"run": str(run), "address": address},
        as_json,
        lambda: print_rich(f'Pushed to {address}. Use it: rd.Recommender.load("{address}")'),
    )
