"""Short descriptions of objects: text for `repr`, and a small table for notebooks."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from typing import Any

# With the title, ten lines.
_MAX_FIELDS = 9
_WIDTH = 100
# Characters that a terminal obeys instead of showing them, or that turn the direction of the text around them: C0 and
# C1, separators of lines and paragraphs, embeddings, overrides and isolates, and halves of surrogate pairs.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str, keep: str = "") -> str:
    """The text with a replacement character for every control character.

    Ids, titles and names of folders come from others, and would otherwise colour, move or fake what a terminal shows.

    Args:
        text: any text.
        keep: control characters to keep, such as line breaks.
    """
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else "\N{REPLACEMENT CHARACTER}", text)


class Displayed:
    """Base of classes that describe themselves by a title and a few fields.

    A dataclass needs ``repr=False``, or it writes a `__repr__` of its own.
    """

    def _display(self) -> tuple[str, Mapping[str, Any]]:
        """The title, and the fields by name. They are cheap to get: no hashing, no reading, no sorting."""
        raise NotImplementedError

    def __repr__(self) -> str:
        title, fields = self._display()
        rows = _rows(fields)
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])

    def _repr_html_(self) -> str:
        title, fields = self._display()
        rows = "".join(
            f"<tr><th style='text-align: left'>{html.escape(name)}</th>"
            f"<td style='text-align: left'>{html.escape(value)}</td></tr>"
            for name, value in _rows(fields)
        )
        return f"<table><caption>{html.escape(title)}</caption>{rows}</table>"


def _rows(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values as one line of text each. What is None or empty text is left out."""
    rows = [(_line(name), _line(value)) for name, value in fields.items() if value is not None and value != ""]
    if len(rows) > _MAX_FIELDS:
        rows = [*rows[: _MAX_FIELDS - 1], ("...", f"{len(rows) - _MAX_FIELDS + 1} more")]
    return rows


def _line(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:.4f}"
    elif isinstance(value, int) and not isinstance(value, bool):
        text = f"{value:,}"
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, Mapping):
        text = ", ".join(f"{key}={_line(item)}" for key, item in value.items())
    else:
        text = plain(" ".join(str(value).split()))
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
