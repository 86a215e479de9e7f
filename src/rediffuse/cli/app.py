"""The application that commands register with, and the options they share."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from rediffuse import launchers
from rediffuse.errors import ConfigError

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


# What several processes do together; the other commands would do the same thing several times.
SHARED = ("train", "evaluate", "recommend")


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Diffusion recommenders: train, compare honestly, serve."""
    several = launchers.left_alone() or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and context.invoked_subcommand not in SHARED:
        raise ConfigError(
            f"rediffuse {context.invoked_subcommand} runs in one process, and a launcher was to start several.",
            f"Start it without a launcher. Several processes share the work of {', '.join(SHARED)}.",
        )
    if launchers.left_alone():
        launchers.start_all(sys.argv[1:])
