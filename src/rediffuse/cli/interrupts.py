"""What Ctrl+C does to a training on the command line."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

from rediffuse.cli.output import rank, say


@contextlib.contextmanager
def says_how_to_resume(folder: Path) -> Iterator[None]:
    """Within the context, Ctrl+C ends the command with status 130 and the command that continues."""
    try:
        yield
    except KeyboardInterrupt:
        from rediffuse.objects.folders import output
        from rediffuse.runs.identity import identity_path

        if rank() == 0:
            say(f"Interrupted.{_remedy(folder, identity_path(output('--out', folder).folder).exists())}")
        raise typer.Exit(130) from None


def _remedy(folder: Path, started: bool) -> str:
    if not started:
        return " Nothing was written; start the same command again."
    arguments = [argument for argument in sys.argv[1:] if argument != "--resume"]
    command = shlex.join(["rediffuse", *arguments, "--resume"])
    last = "The last checkpoint is kept" if (folder / "checkpoints" / "last.safetensors").exists() else "It starts over"
    return f" {last}. Continue with:\n  {command}"
