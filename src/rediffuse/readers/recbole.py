"""RecBole atomic files: ``name.inter`` and the files beside it, ``.item .user .kg .link .net``."""

from __future__ import annotations

import glob
import inspect
import warnings
from os import PathLike
from pathlib import Path
from typing import Any

import polars as pl

from rediffuse.arguments import require_path
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, did_you_mean
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.packing import refuse_special
from rediffuse.readers.tables import Table, read_table
from rediffuse.readers.text_files import TextOptions

# Subsets in names of files, in the order in which the files are read.
_ORDER = {"train": 0, "valid": 1, "val": 1, "dev": 1, "validation": 1, "test": 2}
_TITLES = ("title", "movie_title", "name", "item_name")


def read_atomic(path: str | PathLike[str], **options: Any) -> Dataset:
    """Read RecBole atomic files: the ``.inter`` file and the files beside it with the same name.

    Columns are found by RecBole's names, and tables by the names of their files.

    Args:
        path: the folder, or the ``.inter`` file if there are several. A folder with ``x.train.inter``,
            ``x.valid.inter`` and ``x.test.inter`` (RecBole's benchmark files) is read as a data set with a ready split.
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
    parts, base = _find_inter(require_path("path", path))
    text = TextOptions(options.get("separator"), options.get("encoding"), options.get("quoting", "standard"))
    source: Any = list(parts.values())
    interactions = read_table(source, "interactions", text=text)
    found: dict[str, Any] = {
        "user": _only(interactions, "user_id", 0),
        "item": _only(interactions, "item_id", 1),
        "time": "timestamp" if "timestamp" in interactions.columns else None,
        # Weights of interaction types, if given, are the ratings.
        "rating": "rating" if "rating" in interactions.columns and options.get("weights") is None else None,
    }
    notes = []
    lists = [name for name, kind in interactions.types.items() if kind == "token_seq"]
    if "item" not in options and found["item"] not in lists and any(found["item"] in name for name in lists):
        raise DataError(
            f"{interactions.name} has a column {lists[0]!r} with the items before {found['item']!r}, so the first item "
            "of each user is in no other column.",
            f"Say which to read: item={lists[0]!r} (--item {lists[0]}) for all items of each "
            f"list; or item={found['item']!r} (--item {found['item']}) for these alone.",
        )
    if len(parts) > 1 and "splits" not in options:
        found["splits"] = _subsets(parts, {**found, **options}, text)
        names = ", ".join(file.name for file in parts.values())
        notes.append(f"{names} were read as a ready split: split='given' (--split given) uses it.")
        warnings.warn(notes[-1], RediffuseWarning, stacklevel=2)
    elif "all" in parts and _subset(parts["all"]) is not None:
        others = sorted(file.name for file in base.parent.glob(f"{glob.escape(base.name)}.*.inter"))
        notes.append(
            f"{parts['all'].name} alone was read, of {', '.join(others)}. Name the folder to read all as a ready split."
        )
        warnings.warn(notes[-1], RediffuseWarning, stacklevel=2)
    files = {"items": ".item", "users": ".user", "social": ".net", "kg": ".kg", "item_entity": ".link"}
    beside = {name: file for name, ending in files.items() if (file := Path(f"{base}{ending}")).is_file()}
    for name, other in (("kg", "item_entity"), ("item_entity", "kg")):
        if name in beside and {**beside, **options}.get(other) is None:
            notes.append(f"{beside.pop(name)} was not read, as there is no {files[other]} file beside it.")
    if "items" in beside and not {"items", "title"} & options.keys():
        columns = read_table(beside["items"], "items", text=text).columns
        found["title"] = next((name for name in _TITLES if name in columns), None)
    dataset = read_interactions(source, **{**found, **beside, **options})
    dataset.report["notes"] += notes
    return dataset


def _only(table: Table, usual: str, position: int) -> str:
    """The id column under its usual name, else the token column in that position (``session_id``).

    Without one there may be a list of items: ``item_id_list:token_seq``.
    """
    if usual in table.columns:
        return usual
    tokens = [name for name, kind in table.types.items() if kind == "token"]
    if len(tokens) <= position:
        tokens = [*tokens, *(name for name, kind in table.types.items() if kind == "token_seq")]
    return usual if len(tokens) <= position else tokens[position]


def _subsets(parts: dict[str, Path], options: dict[str, Any], text: TextOptions) -> pl.DataFrame:
    """A table of splits: the subset of each interaction is that of its file."""
    wanted = [options[role] for role in ("user", "item", "order", "time") if options.get(role)]
    frames = []
    for subset, file in parts.items():
        table = read_table(file, "interactions", text=text)
        names = [table.need(name, name) for name in dict.fromkeys(wanted)]
        frames.append(table.collect(names).with_columns(split=pl.lit(subset)))
    return pl.concat(frames)


def _find_inter(path: Path) -> tuple[dict[str, Path], Path]:
    """The .inter file (key: "all") or the files by subset, and the path of the data set without ending."""
    if path.is_file():
        return {"all": path}, _base(path)
    if not path.is_dir():
        refuse_special(path)
        raise DataError(f"{path} does not exist.", "Name a folder of atomic files, or its .inter file.")
    found = sorted(path.glob("*.inter"))
    if len(found) == 1:
        return {"all": found[0]}, _base(found[0])
    if not found:
        raise DataError(f"{path} holds no .inter file.", "Name the folder that holds the atomic files.")
    parts = {subset: file for file in found if (subset := _subset(file)) is not None}
    if len(parts) == len(found) and len({_base(file) for file in found}) == 1:
        return {subset: parts[subset] for subset in sorted(parts, key=_ORDER.__getitem__)}, _base(found[0])
    listed = ", ".join(file.name for file in found)
    raise DataError(
        f"{path} holds several .inter files: {listed}.",
        "Name one of them; of a folder with x.train.inter, x.valid.inter and x.test.inter alone, all are read.",
    )


def _subset(file: Path) -> str | None:
    """The subset in the name of a file such as ``x.train.inter``."""
    name = file.with_suffix("").suffix.removeprefix(".")
    return name if name in _ORDER else None


def _base(file: Path) -> Path:
    """The path of the data set: without .inter and without the subset."""
    plain = file.with_suffix("")
    return plain if _subset(file) is None else plain.with_suffix("")
