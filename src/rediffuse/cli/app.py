"""The application that commands register with, and the options they share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    name="rediffuse",
    help="Diffusion recommenders: train, compare honestly, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _version(asked: bool) -> None:
    if asked:
        from rediffuse import __version__

        typer.echo(f"rediffuse {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Diffusion recommenders: train, compare honestly, serve."""
