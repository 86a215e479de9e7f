"""Errors and warnings that a user is meant to read.

Every error says what was found, where, what was expected and how to mend it. Nothing else in the
package raises for bad input; anything that escapes as another type is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RediffuseError(Exception):
    """Base of all errors caused by input, options or files rather than by a bug.

    Args:
        problem: what was found, naming the file, column, row or option.
        remedy: what to do about it, as an instruction.
    """

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(problem if remedy is None else f"{problem}\n  {remedy}")


class DataError(RediffuseError):
    """A table, a file of a dataset, or its content cannot be used."""


class ConfigError(RediffuseError):
    """An option or a configuration value is unknown or out of range."""


class RunError(RediffuseError):
    """A run folder is incomplete, damaged, or does not match what it is used with."""


class StorageError(RediffuseError):
    """A file or folder cannot be written: the disk is full, or may not be written to."""


class TrainingError(RediffuseError):
    """Training cannot go on (for example the loss is no longer finite)."""


class MissingExtraError(RediffuseError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed for this and is not installed.",
            f"Run: pip install 'rediffuse[{extra}]'",
        )


class RediffuseWarning(UserWarning):
    """Something a user should know that does not stop the work."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one, or the list of all."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"Did you mean {close[0]!r}? Known: {', '.join(names)}."
    return f"Known: {', '.join(names)}."
