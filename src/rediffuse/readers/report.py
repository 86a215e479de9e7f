"""The report of reading a table: what was counted and dropped, and what was decided."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from rediffuse.errors import RediffuseWarning


class ReadReport:
    """Collected while tables are read; `as_dict` becomes `rediffuse.data.dataset.Dataset.report`.

    Attributes:
        values: counts and other values by name.
        notes: sentences about what a user should know.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        self.notes.append(sentence)

    def warn(self, sentence: str) -> None:
        """Note a sentence, and warn: what was read is probably not what was meant."""
        self.note(sentence)
        level, frame = 2, sys._getframe(1)  # the caller's line, whatever the path through this package
        while frame is not None and frame.f_globals.get("__name__", "").startswith("rediffuse."):
            level, frame = level + 1, frame.f_back
        warnings.warn(sentence, RediffuseWarning, stacklevel=level)

    def count(self, name: str, count: int, sentence: str) -> None:
        """Enter a count; unless it is zero, note it, followed by ``sentence`` (without a full stop)."""
        self.values[name] = count
        if count:
            self.note(f"{count:,} {sentence}.")

    def as_dict(self) -> dict[str, Any]:
        return {**self.values, "notes": self.notes}
