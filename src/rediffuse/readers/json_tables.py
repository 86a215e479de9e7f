"""JSON: one object per line (JSON lines, as Amazon's and Yelp's reviews are), or a list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.errors import DataError
from rediffuse.readers.packing import open_unpacked
from rediffuse.table_files import json_lines

_REMEDY = 'Write one object per line: frame.to_json(path, orient="records", lines=True), or jq -c ".[]" FILE.'


def read_json(path: Path) -> pl.DataFrame:
    """A table with a row per object; keys that an object lacks are null.

    Raises:
        DataError: a line is no JSON object, or its values have another type than those of other lines.
    """
    with open_unpacked(path) as file:
        content = file.read().removeprefix(b"\xef\xbb\xbf").strip()
    if content[:1] == b"[":
        return _frame(path, list(_objects(path, _parsed(path, content))), "object")
    if not content.count(b"\n"):
        only = _parsed(path, content)
        if isinstance(only, dict) and only and all(isinstance(value, dict | list) for value in only.values()):
            holds = "columns" if all(isinstance(value, dict) for value in only.values()) else "lists"
            raise DataError(f"{path} is one JSON object of {holds}, not rows.", _REMEDY)
        return _frame(path, [only], "line")
    try:
        frame = json_lines(content)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        frame = None
    if frame is None or len(frame) != _lines(content) or "" in frame.columns:
        return _frame(path, list(_by_line(path, content)), "line")
    return frame


def _lines(content: bytes) -> int:
    return sum(bool(line.strip()) for line in content.split(b"\n"))


def _parsed(path: Path, content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}.", _REMEDY) from None


def _by_line(path: Path, content: bytes) -> Iterator[dict[str, Any]]:
    """The objects, one by one; slow, so it is done only when the whole cannot be read."""
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            spread = number == 1 and line.strip() in (b"{", b"[")
            problem = "begins with an object that spans lines" if spread else f"is not JSON in line {number}: {error}"
            raise DataError(f"{path} {problem}.", _REMEDY) from None
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number} is no JSON object: {line[:40]!r}.", _REMEDY)
        yield value


def _objects(path: Path, values: list[Any]) -> Iterator[dict[str, Any]]:
    for number, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{path}: entry {number} of the list is no JSON object: {str(value)[:40]!r}.", _REMEDY)
        yield value


def _frame(path: Path, rows: list[dict[str, Any]], unit: str) -> pl.DataFrame:
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        kinds: dict[type, int] = {}
        for number, value in enumerate(values, start=1):
            if value is not None:
                kinds.setdefault(float if isinstance(value, float) else type(value), number)
        if kinds.keys() == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            (one, at), (other, then) = list(kinds.items())[:2]
            raise DataError(
                f"{path}: {name!r} is {_named(one)} in {unit} {at} and {_named(other)} in {unit} {then}.",
                "Write it as one type everywhere.",
            )
        try:
            columns.append(pl.Series(name, values, strict=True))
        except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
            raise DataError(f"{path}: {name!r} cannot be read: {str(error).splitlines()[0]}.", _REMEDY) from None
    return pl.DataFrame(columns)


def _named(kind: type) -> str:
    names = {
        str: "text",
        int: "an integer",
        float: "a number",
        bool: "true or false",
        list: "a list",
        dict: "an object",
    }
    return names.get(kind, kind.__name__)
