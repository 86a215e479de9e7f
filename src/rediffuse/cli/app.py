"""The application that commands register with, and the options they share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from rediffuse import distributed
from rediffuse.addresses import AddressPath, address_of, refuse_address, refuse_unknown
from rediffuse.errors import ConfigError

# In the order of their use.
COMMANDS = (
    "data",
    "data report",
    "prepare",
    "models",
    "train",
    "evaluate",
    "compare",
    "run",
    "blend",
    "tune",
    "augment",
)
COMMANDS += ("recommend", "refit", "update", "update-histories", "add-items", "push", "serve", "index", "export")
COMMANDS += ("doctor",)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """The names of the commands as ``--help`` lists them."""
        return sorted(self.commands, key=COMMANDS.index)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the first word names, or the first two."""
        name = " ".join(args[:2])
        return (name, self.commands[name], args[2:]) if name in self.commands else super().resolve_command(ctx, args)


# Arguments and options that may be addresses; the functions that they reach refuse what they cannot use.
ADDRESSES = ("run", "runs", "dataset", "data", "out", "source", "interactions", "items", "users", "exclude_file")
ADDRESSES += ("candidates", "near_duplicates", "social", "kg", "item_entity", "splits")


class _Command(TyperCommand):
    """A command whose arguments and options of type `Path` are looked at before it runs: addresses are refused where
    their scheme is unknown, and where only a local path makes sense."""

    def invoke(self, ctx: Any) -> Any:
        for param in self.params:
            value = ctx.params.get(param.name)
            if isinstance(value, list | tuple):
                ctx.params[param.name] = type(value)(self._checked(param, one) for one in value)
            else:
                ctx.params[param.name] = self._checked(param, value)
        return super().invoke(ctx)

    def _checked(self, param: Any, value: Any) -> Any:
        if not isinstance(value, Path):
            return value
        (refuse_unknown if param.name in ADDRESSES else refuse_address)(_shown(param), value)
        return value if address_of(value) is None else AddressPath(value)


def _shown(param: Any) -> str:
    """The name of an argument or option as ``--help`` has it."""
    return max(param.opts, key=len) if param.param_type_name == "option" else param.name.upper()


class Application(typer.Typer):
    def command(self, name: str | None = None, **options: Any) -> Any:
        """As `typer.Typer.command`, with the checks of `_Command`."""
        return super().command(name, cls=_Command, **options)


app = Application(
    name="rediffuse",
    cls=_Commands,
    help="Train, evaluate, compare and serve diffusion recommenders and baselines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

MODEL_HELP = (
    "A name (see: rediffuse models), or my_package.module:MyModel for a class of your own. "
    "The module may be in the current directory."
)
Device = Annotated[
    str, typer.Option(help="Where the model computes: cpu, cuda, cuda:1, mps, or auto: what torch finds.")
]
TrainingDevice = Annotated[
    str, typer.Option("--device", help="Where to train: auto (what torch finds), cpu, cuda, cuda:1, mps.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def _version(wanted: bool) -> None:
    if wanted:
        from rediffuse import __version__

        typer.echo(f"rediffuse {__version__}")
        raise typer.Exit


# Commands that divide their work among the processes of a launcher; the others would repeat it in each.
DISTRIBUTED = ("train", "refit", "evaluate")
RECOMMEND = "With --engine ray it recommends in several processes, on one machine or more."


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, evaluate, compare and serve diffusion recommenders and baselines."""
    distributed.check_launcher()
    if distributed.launched() and (command := context.invoked_subcommand) not in DISTRIBUTED:
        others = f"Distributed commands are {', '.join(DISTRIBUTED)}."
        raise ConfigError(
            f"rediffuse {command} runs in one process, and a launcher started several.",
            f"Run it without a launcher. {RECOMMEND if command == 'recommend' else others}",
        )
