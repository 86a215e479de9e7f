"""RecBole atomic files: ``name.inter`` and whatever lies beside it as ``.item .user .kg .link .net``."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.tables import Table, read_table

_TITLES = ("title", "movie_title", "name", "item_name")


def read_atomic(path: str | PathLike[str], **options: Any) -> Dataset:
    """Read RecBole atomic files: the ``.inter`` file and the files beside it with the same name.

    Args:
        path: the folder, or the ``.inter`` file if there are several.
        options: k_core, min_rating, duplicates, encoding, separator and title of `read_interactions`.

    Raises:
        DataError: no or several ``.inter`` files, or a table cannot be used.
    """
    inter = _find_inter(Path(path))
    separator, encoding = options.get("separator"), options.get("encoding")

    def beside(suffix: str) -> Path | None:
        file = inter.with_suffix(suffix)
        return file if file.is_file() else None

    interactions = read_table(inter, "interactions", separator=separator, encoding=encoding)
    item_file, kg, link = beside(".item"), beside(".kg"), beside(".link")
    if item_file is not None and "title" not in options:
        columns = read_table(item_file, "items", separator=separator, encoding=encoding).columns
        options["title"] = next((name for name in _TITLES if name in columns), None)
    dataset = read_interactions(
        inter,
        user=_only(interactions, "user_id", 0),
        item=_only(interactions, "item_id", 1),
        time="timestamp" if "timestamp" in interactions.columns else None,
        rating="rating" if "rating" in interactions.columns else None,
        items=item_file,
        users=beside(".user"),
        social=beside(".net"),
        kg=kg if link else None,
        item_entity=link if kg else None,
        **options,
    )
    if (kg is None) != (link is None):
        missing, there = (".link", kg) if link is None else (".kg", link)
        dataset.report["notes"].append(f"{there} was not read, as there is no {missing} file beside it.")
    return dataset


def _only(table: Table, usual: str, position: int) -> str:
    """The id column under its usual name, else the token column in that place (``session_id``)."""
    tokens = [name for name, kind in table.types.items() if kind == "token"]
    return usual if usual in table.columns or len(tokens) <= position else tokens[position]


def _find_inter(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise DataError(f"{path} does not exist.", "Name a folder of atomic files, or its .inter file.")
    found = sorted(path.glob("*.inter"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{path} holds no .inter file.", "Name the folder that holds the atomic files.")
    listed = ", ".join(file.name for file in found)
    raise DataError(f"{path} holds several .inter files: {listed}.", "Name one of them.")
