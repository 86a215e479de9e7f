"""Output of commands: tables and sentences, or one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rediffuse.display import plain
from rediffuse.errors import RediffuseError, RediffuseWarning

if TYPE_CHECKING:
    from rich.text import Text

    from rediffuse.cli.plain_table import PlainTable


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
    console.print(_text(f"Error{where}:", "bold red"), _text(error.problem))
    if error.remedy:
        console.print(_text(f"  {error.remedy}"))


def print_warning(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """As `print_note`, in process 0 only: all processes have the same warnings."""
    if rank() == 0:
        print_note(message, category)


def print_note(message: Warning | str, category: type[Warning], *about: Any, **more: Any) -> None:
    """Print a warning of Rediffuse as one line on stderr; leave out those of other libraries."""
    if issubclass(category, RediffuseWarning):
        say(f"Note: {message}")


def say(sentence: str) -> None:
    """Print a sentence on stderr."""
    print(plain(sentence, "\n"), file=sys.stderr, flush=True)


def table(title: str, *columns: str) -> PlainTable:
    """An empty table; all columns but the first are aligned to the right, for numbers."""
    from rediffuse.cli.plain_table import PlainTable

    return PlainTable(title, *columns)


def print_rich(*parts: Any) -> None:
    """Print tables, and strings as they are."""
    from rich.console import Console

    console = Console(highlight=False)
    for part in parts:
        console.print(_text(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(plain(text, "\n"), style)
