"""What a person or a program reads: tables and sentences, or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rediffuse.errors import RediffuseError, RediffuseWarning

if TYPE_CHECKING:
    from rich.table import Table


def process() -> int:
    """Which of several processes this is, as launchers number them."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def answer(result: dict[str, Any], as_json: bool, show: Callable[[], None]) -> None:
    """Print ``result`` as JSON, or call ``show`` to print it for a person."""
    if as_json:
        print(json.dumps(result, default=str))
    else:
        show()


def fail(error: RediffuseError, as_json: bool) -> None:
    """Print an error that a user can mend. Of several processes the first alone prints JSON."""
    if as_json and process() == 0:
        print(json.dumps({"error": error.problem, "remedy": error.remedy}))
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    where = f" (process {process()})" if process() > 0 else ""
    console.print(f"[bold red]Error{where}:[/] {_plain(error.problem)}")
    if error.remedy:
        console.print(f"  {_plain(error.remedy)}")


def print_warning(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """As `print_note`, by process 0 alone: the others have the same to say."""
    if process() == 0:
        print_note(message, category)


def print_note(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """Our warnings as one sentence; others (of libraries) are not the user's business here."""
    if issubclass(category, RediffuseWarning):
        print(f"Note: {message}", file=sys.stderr)


def table(title: str, *columns: str) -> Table:
    """A table whose columns after the first are numbers, aligned to the right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        made.add_column(column, justify="left" if place == 0 else "right")
    return made


def show(*things: Any) -> None:
    """Print for a person."""
    from rich.console import Console

    console = Console(highlight=False)
    for thing in things:
        console.print(_plain(thing) if isinstance(thing, str) else thing, soft_wrap=isinstance(thing, str))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
