"""The application that commands register with, and the options they share."""

from __future__ import annotations

from typing import Annotated

import typer

from rediffuse import distributed
from rediffuse.errors import ConfigError

app = typer.Typer(
    name="rediffuse",
    help="Diffusion recommenders: train, compare honestly, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL_HELP = (
    "A name (see: rediffuse models), or my_package.module:MyModel for a class of your own. "
    "The module may be in the current directory."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _version(asked: bool) -> None:
    if asked:
        from rediffuse import __version__

        typer.echo(f"rediffuse {__version__}")
        raise typer.Exit


# Commands whose work several processes share; the others would do the same work several times.
SHARED = ("train", "evaluate", "recommend")


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Diffusion recommenders: train, compare honestly, serve."""
    distributed.check_launcher()
    if distributed.launched() and context.invoked_subcommand not in SHARED:
        raise ConfigError(
            f"rediffuse {context.invoked_subcommand} runs in one process, and a launcher started several.",
            f"Run it without a launcher. Several processes can share the work of {', '.join(SHARED)}.",
        )
