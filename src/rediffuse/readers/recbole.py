"""RecBole atomic files: ``name.inter`` and the files beside it, ``.item .user .kg .link .net``."""

from __future__ import annotations

import inspect
from os import PathLike
from pathlib import Path
from typing import Any

from rediffuse.arguments import require_path
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, did_you_mean
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.packing import refuse_special
from rediffuse.readers.tables import Table, read_table
from rediffuse.readers.text_files import TextOptions

_TITLES = ("title", "movie_title", "name", "item_name")


def read_atomic(path: str | PathLike[str], **options: Any) -> Dataset:
    """Read RecBole atomic files: the ``.inter`` file and the files beside it with the same name.

    Columns are found by RecBole's names, and tables by the names of their files.

    Args:
        path: the folder, or the ``.inter`` file if there are several.
        options: any of `read_interactions`. They replace what would be found by name: ``time="time"`` names the column
            of times, ``items="other.csv"`` another table of items.

    Raises:
        DataError: no or several ``.inter`` files, or a table cannot be used.
        ConfigError: an unknown option, or as `read_interactions`.
    """
    known = list(inspect.signature(read_interactions).parameters)[1:]
    for option in options:
        if option not in known:
            raise ConfigError(f"read_atomic has no option {option!r}.", did_you_mean(option, known))
    inter = _find_inter(require_path("path", path))
    text = TextOptions(options.get("separator"), options.get("encoding"), options.get("quoting", "standard"))
    interactions = read_table(inter, "interactions", text=text)
    found: dict[str, Any] = {
        "user": _only(interactions, "user_id", 0),
        "item": _only(interactions, "item_id", 1),
        "time": "timestamp" if "timestamp" in interactions.columns else None,
        # Weights of interaction types, if given, are the ratings.
        "rating": "rating" if "rating" in interactions.columns and options.get("weights") is None else None,
    }
    files = {"items": ".item", "users": ".user", "social": ".net", "kg": ".kg", "item_entity": ".link"}
    beside = {name: file for name, ending in files.items() if (file := inter.with_suffix(ending)).is_file()}
    notes = []
    for name, other in (("kg", "item_entity"), ("item_entity", "kg")):
        if name in beside and {**beside, **options}.get(other) is None:
            notes.append(f"{beside.pop(name)} was not read, as there is no {files[other]} file beside it.")
    if "items" in beside and not {"items", "title"} & options.keys():
        columns = read_table(beside["items"], "items", text=text).columns
        found["title"] = next((name for name in _TITLES if name in columns), None)
    dataset = read_interactions(inter, **{**found, **beside, **options})
    dataset.report["notes"] += notes
    return dataset


def _only(table: Table, usual: str, position: int) -> str:
    """The id column under its usual name, else the token column in that position (``session_id``)."""
    tokens = [name for name, kind in table.types.items() if kind == "token"]
    return usual if usual in table.columns or len(tokens) <= position else tokens[position]


def _find_inter(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        refuse_special(path)
        raise DataError(f"{path} does not exist.", "Name a folder of atomic files, or its .inter file.")
    found = sorted(path.glob("*.inter"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{path} holds no .inter file.", "Name the folder that holds the atomic files.")
    listed = ", ".join(file.name for file in found)
    raise DataError(f"{path} holds several .inter files: {listed}.", "Name one of them.")
