"""Files of a folder that a user obtained, and the checks that all converters share."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError
from rediffuse.readers.adjacency import line_parts
from rediffuse.readers.research.pickles import read_pickle

SUBSETS = ("train", "valid", "test")


def find(folder: Path, *patterns: str) -> Path | None:
    """The one file that a pattern matches: in the folder, else anywhere below it. The first pattern that matches wins.

    Args:
        folder: what the user passed.
        patterns: of file names, such as "*.train.rating".

    Raises:
        DataError: several match.
    """
    for pattern in patterns:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        found = found or sorted(path for path in folder.rglob(pattern) if path.is_file())
        if len(found) > 1:
            names = ", ".join(str(path.relative_to(folder)) for path in found[:5])
            raise DataError(
                f"{folder} holds {len(found)} files {pattern}: {names}.", "Name the folder of one data set."
            )
        if found:
            return found[0]
    return None


def need(folder: Path, *patterns: str, purpose: str) -> Path:
    """As `find`, for a file that has to exist; ``purpose`` says what it holds.

    Raises:
        DataError: it does not exist, or several match.
    """
    path = find(folder, *patterns)
    if path is not None:
        return path
    problem = f"{folder} holds no file {' or '.join(patterns)} ({purpose})."
    packed = sorted(path.name for ending in ("rar", "zip", "7z", "gz") for path in folder.rglob(f"*.{ending}"))
    if packed:
        raise DataError(problem, f"It holds archives ({', '.join(packed[:5])}): unpack the one you want first.")
    raise DataError(problem, "Name the folder in which the released files lie.")


def array(path: Path, kinds: str, columns: int) -> NDArray[Any]:
    """An array in NumPy's format, which cannot run code: arrays of Python objects are refused.

    Args:
        path: the ``.npy`` file.
        kinds: of dtypes that are accepted, such as "iu".
        columns: how many a table has; 0: the array is a list, -1: any number.

    Raises:
        DataError: the file is something else.
    """
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        problem = f"{path} cannot be read as an array: {str(error).splitlines()[0]}"
        raise DataError(problem, "It should be a .npy file of numbers; arrays of Python objects are refused.") from None
    if not isinstance(found, np.ndarray):  # an archive of several arrays
        found.close()
        raise DataError(f"{path} is an archive of arrays (.npz).", "Name the folder of the .npy files.")
    fits = found.ndim == 1 if columns == 0 else found.ndim == 2 and columns in (-1, found.shape[1])
    if found.dtype.kind not in kinds or not fits:
        expected = {0: "a list of ids", -1: "rows of numbers"}.get(columns, f"{columns} columns of integers")
        raise DataError(
            f"{path} holds an array of {found.dtype} of shape {found.shape}.", f"Expected {expected}. Get it again."
        )
    return found


def vector_table(path: Path, column: str) -> pl.DataFrame:
    """A table of ids, numbered from 0, and the rows of an array as the column ``vector``."""
    rows = array(path, "fiu", -1).astype(np.float32)
    return pl.DataFrame({column: np.arange(len(rows)), "vector": pl.Series(rows.tolist(), dtype=pl.List(pl.Float32))})


def integers(path: Path, *names: str) -> pl.DataFrame:
    """Rows of integers in text, separated by blanks or tabs, without a header.

    Args:
        path: the file.
        names: of the columns that a row has at least; further ones are left out.

    Raises:
        DataError: the file cannot be read, or a row has fewer; the error names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text: {error}", "Get the file again.") from None
    frame = line_parts(lines).filter(pl.col("parts").list.len() > 0)
    fields = [
        pl.col("parts").list.get(i, null_on_oob=True).cast(pl.Int64, strict=False).alias(name)
        for i, name in enumerate(names)
    ]
    rows = frame.select("line", *fields)
    wrong = rows.filter(pl.any_horizontal(pl.col(names).is_null()))
    if len(wrong):
        line = wrong["line"][0]
        raise DataError(
            f"{path}, line {line}: {lines[line - 1][:60]!r} is not a row of {len(names)} integers.",
            f"{len(wrong):,} of {len(rows):,} lines are not. Get the file again.",
        )
    return rows.select(names)


def sequences(value: Any, where: str) -> pl.DataFrame:
    """A dict of users and lists of integers, as the columns user_id and item_id, in order.

    Raises:
        DataError: it is something else.
    """
    if type(value) is not dict or not value or set(map(type, value)) != {int}:
        raise DataError(f"{where} is not a dict of users, numbered by integers.", "Get the file again.")
    lists = list(value.values())
    if set(map(type, lists)) != {list} or not set(map(type, chain.from_iterable(lists))) <= {int}:
        raise DataError(f"{where} does not hold a list of integers for every user.", "Get the file again.")
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    try:
        users = np.repeat(np.fromiter(value, np.int64, len(value)), lengths)
        items = np.fromiter(chain.from_iterable(lists), np.int64, int(lengths.sum()))
    except OverflowError:
        raise DataError(f"{where} holds integers beyond 64 bits.", "Get the file again.") from None
    return pl.DataFrame({"user_id": users, "item_id": items})


def pickled_sequences(path: Path) -> pl.DataFrame:
    """As `sequences`, from a pickle that holds nothing else."""
    return sequences(read_pickle(path), str(path))


def with_positions(pairs: pl.DataFrame) -> pl.DataFrame:
    """``pairs`` sorted by user, with the column position: the place in the history of the user, from 0."""
    ordered = pairs.sort("user_id", maintain_order=True)
    return ordered.with_columns(position=pl.int_range(pl.len()).over("user_id"))


def labelled(frames: Iterable[tuple[str, pl.DataFrame]]) -> pl.DataFrame:
    """Tables of subsets below each other, with the column split."""
    return pl.concat([frame.with_columns(split=pl.lit(subset)) for subset, frame in frames])


def without_repeats(pairs: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
    """``pairs`` without those that a subset holds repeatedly, and a sentence that says so.

    The released programs put pairs into sets or binary matrices.
    """
    kept = pairs.unique(["user_id", "item_id", "split"], keep="first", maintain_order=True)
    if len(kept) == len(pairs):
        return pairs, None
    first = pairs.filter(pl.struct("user_id", "item_id", "split").is_duplicated()).row(0, named=True)
    note = (
        f"{len(pairs) - len(kept):,} pairs that a subset repeats were dropped, as the released program does "
        f"(the first: user {first['user_id']}, item {first['item_id']}, {first['split']})."
    )
    return kept, note


def overlap(pairs: pl.DataFrame) -> str | None:
    """A sentence about pairs that stand in several subsets."""
    both = pairs.filter(pl.struct("user_id", "item_id").is_duplicated())
    if not len(both):
        return None
    first, count = both.row(0, named=True), both.select("user_id", "item_id").n_unique()
    return (
        f"{count:,} pairs are in several subsets, as released (the first: user {first['user_id']}, item "
        f"{first['item_id']}); where seen items are filtered, they cannot be predicted."
    )


def with_notes(dataset: Dataset, *notes: str | None) -> Dataset:
    """The dataset, with sentences in its report; None is left out."""
    dataset.report["notes"] += [note for note in notes if note is not None]
    return dataset
