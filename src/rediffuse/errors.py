"""Errors and warnings for users.

Every error says what was found, where, what was expected and how to fix it. Nothing else in the package raises for bad
input; any other type that escapes is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


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

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickling by default calls the class with `args`, which hold the whole message and not its two halves.
        return _unpickle, (type(self), self.problem, self.remedy, dict(self.__dict__))


def _unpickle(kind: type[RediffuseError], problem: str, remedy: str | None, state: dict[str, Any]) -> RediffuseError:
    error = kind.__new__(kind)
    RediffuseError.__init__(error, problem, remedy)
    error.__dict__.update(state)
    return error


class DataError(RediffuseError, ValueError):
    """A table, a file of a dataset, or its content cannot be used."""


class ConfigError(RediffuseError, ValueError):
    """An argument, an option or a configuration value is unknown, of the wrong type or out of range."""


class RunError(RediffuseError):
    """A run folder is incomplete, damaged, or does not match what it is used with."""


class StorageError(RediffuseError):
    """A file or folder cannot be written: the disk is full, or may not be written to."""


class TrainingError(RediffuseError):
    """Training cannot go on (for example the loss is no longer finite)."""


class MissingExtraError(RediffuseError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is needed for this and is not installed.",
            f"Run: pip install 'rediffuse[{extra}]'",
        )


class RediffuseWarning(UserWarning):
    """Something a user should know that does not stop the work."""


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """A remedy for an unknown name: the closest known one, or the list of all.

    Letter case, hyphens and underscores do not matter: ``Light_GCN`` is closest to ``lightgcn``.
    """
    names = sorted(known)
    close = closest(word, names)
    listed = f"Known: {', '.join(names)}."
    return f"Did you mean {close!r}? {listed}" if close else listed


def closest(word: object, known: Iterable[str]) -> str | None:
    """The known name that is closest to ``word``, None if none is close."""
    folded = {_folded(name): name for name in sorted(known, reverse=True)}
    close = difflib.get_close_matches(_folded(str(word)), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def _folded(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "")


def refuse_unknown(owner: str, params: Iterable[str], known: Sequence[str], none_known: str) -> None:
    """Refuse parameters of ``owner`` that are not ``known``; ``none_known`` is the remedy if it has none.

    Raises:
        ConfigError: a parameter is unknown; the error gives the closest known one.
    """
    for param in params:
        if param not in known:
            remedy = did_you_mean(param, known) if known else none_known
            raise ConfigError(f"{owner} has no parameter {param!r}.", remedy)
