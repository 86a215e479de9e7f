"""Output of commands: tables and sentences, or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rediffuse.errors import RediffuseError, RediffuseWarning

if TYPE_CHECKING:
    from rich.table import Table


def rank() -> int:
    """Rank of this process, as a launcher set it; 0 without a launcher."""
    value = os.environ.get("RANK", "")
    return int(value) if value.isdecimal() else 0


def emit(result: dict[str, Any], as_json: bool, print_summary: Callable[[], None]) -> None:
    """Print ``result`` as JSON, or call ``print_summary``."""
    if as_json:
        print(json.dumps(result, default=str))
    else:
        print_summary()


def fail(error: RediffuseError, as_json: bool) -> None:
    """Print an error: as JSON on stdout (process 0 only), or as text on stderr."""
    if as_json and rank() == 0:
        print(json.dumps({"error": error.problem, "remedy": error.remedy}))
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    where = f" (process {rank()})" if rank() > 0 else ""
    console.print(f"[bold red]Error{where}:[/] {_plain(error.problem)}")
    if error.remedy:
        console.print(f"  {_plain(error.remedy)}")


def print_warning(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """As `print_note`, in process 0 only: all processes have the same warnings."""
    if rank() == 0:
        print_note(message, category)


def print_note(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """Print a warning of Rediffuse as one line on stderr; leave out those of other libraries."""
    if issubclass(category, RediffuseWarning):
        print(f"Note: {message}", file=sys.stderr)


def table(title: str, *columns: str) -> Table:
    """An empty table; all columns but the first are aligned to the right, for numbers."""
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for position, column in enumerate(columns):
        made.add_column(column, justify="left" if position == 0 else "right")
    return made


def print_rich(*parts: Any) -> None:
    """Print tables, and strings as they are."""
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(_plain(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
