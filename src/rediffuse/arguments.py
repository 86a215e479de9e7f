"""Checks of arguments: a wrong type is an error that names the argument, what came and what is wanted."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from rediffuse.addresses import refuse_address
from rediffuse.errors import ConfigError

_PLAIN = (str, bytes, bool, int, float, type(None))


def described(value: Any) -> str:
    """What a value is, in a few words: ``'abc'``, ``a pandas DataFrame``, ``a list``, ``the class SASRec``."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, _PLAIN):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    return _with_article(kind.__name__ if package in ("builtins", "rediffuse") else f"{package} {kind.__name__}")


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def wrong_type(name: str, value: Any, wanted: str, remedy: str | None = None) -> ConfigError:
    """The error for an argument of the wrong type; ``wanted`` follows "not"."""
    return ConfigError(f"{name} is {described(value)}, not {wanted}.", remedy)


def require_path(name: str, value: Any, remedy: str | None = None) -> Path:
    """The value as a path.

    Raises:
        ConfigError: it is neither text nor a path, empty, or an address such as ``s3://bucket``.
    """
    if not isinstance(value, str | PathLike) or not isinstance(fspath(value), str):
        raise wrong_type(name, value, "a path", remedy or f'Give {name} as text or a path: {name}="folder".')
    if not str(value):
        raise ConfigError(f"{name} is empty text, not a path.", remedy)
    refuse_address(name, value)
    return Path(value)


def require_integer(name: str, value: Any, minimum: int | None = 1) -> int:
    """The value as an integer of at least ``minimum``.

    Raises:
        ConfigError: it is not one.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {described(value)}.", f"Give {name} as an integer.") from None
    if minimum is not None and number < minimum:
        raise ConfigError(f"{name} is {value}.", f"Give {name} of at least {minimum}.")
    return number


def require_number(name: str, value: Any, *, above: float | None = None) -> float:
    """The value as a number, larger than ``above``.

    Raises:
        ConfigError: it is not one.
    """
    if not isinstance(value, int | float) and not hasattr(value, "__float__"):
        raise ConfigError(f"{name} is {described(value)}.", f"Give {name} as a number.")
    found = float(value)
    if math.isnan(found) or (above is not None and found <= above):
        raise ConfigError(f"{name} is {value}.", f"Give a number{'' if above is None else f' above {above:g}'}.")
    return found


def require_flag(name: str, value: Any) -> bool:
    """The value, which is true or false.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, bool) and type(value).__name__ not in ("bool", "bool_"):  # of NumPy
        raise wrong_type(name, value, "True or False", f"Give {name}=True or {name}=False.")
    return bool(value)


def require_options(
    name: str, value: Any, of: type[Any] | None = None, example: str = '{"epochs": 20}'
) -> dict[str, Any]:
    """Options by name: from a mapping, from None, or those set on an object of the config class ``of``.

    Raises:
        ConfigError: it is something else.
    """
    if value is None:
        return {}
    if of is not None and isinstance(value, of):
        return value.model_dump(exclude_unset=True)
    if isinstance(value, Mapping):
        for option in value:
            if not isinstance(option, str):
                raise wrong_type(f"An option in {name}", option, "text", f"For example: {name}={example}.")
    else:
        wanted = "a dict of options" if of is None else f"a dict of options or {_with_article(of.__name__)}"
        raise wrong_type(name, value, wanted, f"For example: {name}={example}.")
    return dict(value)


def require_text(name: str, value: Any) -> str | None:
    """The value, which is text or None.

    Raises:
        ConfigError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise wrong_type(name, value, "text", f"Give {name} as text, or leave it out.")
    return value
