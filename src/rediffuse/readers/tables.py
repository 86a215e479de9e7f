"""Tables of every kind: paths and dataframes become one `Table` over a lazy polars frame."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from rediffuse import forks
from rediffuse.addresses import address_of, refuse_unknown
from rediffuse.arguments import wrong_type
from rediffuse.data.dataset import Dataset
from rediffuse.errors import DataError, RediffuseWarning, closest, did_you_mean
from rediffuse.objects.store import scan_options
from rediffuse.readers.json_tables import read_json
from rediffuse.readers.packing import kind_of, refuse_special
from rediffuse.readers.remote_tables import RemoteFile, changed, expand_address
from rediffuse.readers.text_files import (
    TextFile,
    TextOptions,
    diagnose,
    first_line,
    inspect,
    listed,
    no_header,
    scan,
)
from rediffuse.table_files import read_arrow, scan_objects, scan_parquet

# Rows of a column that are read at once, so that memory does not grow with the table. Numbering strings builds a table
# of all ids per piece, so pieces are not small.
PIECE = 1 << 24


# Size in bytes and modification time in ns of a file; None if it is missing.
Stamp = tuple[int, int] | None

DECIMAL_COMMA = r"^[+-]?\d*,\d+([eE][+-]?\d+)?$"
_TRUNCATED = "The file may be truncated: download or write it again."

# What polars raises for damaged files. Its panics are not subclasses of Exception.
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


@dataclass(frozen=True)
class Table:
    """A table as it was passed by the user.

    Attributes:
        name: for messages: a path, or "the interactions dataframe".
        frame: lazy; columns of text files are String, with null for empty and missing fields, and without blank
            lines.
        columns: names, in order.
        types: RecBole type by column, for atomic files.
        files: its Parquet files or text files, in the order of rows; empty for dataframes.
        stamps: size and time of each file when the table was opened, None for one that was missing.
        loaded: files that were read as a whole when the table was opened, such as JSON; ``files`` is empty then.
    """

    name: str
    frame: pl.LazyFrame
    columns: list[str]
    types: dict[str, str]
    files: Sequence[Path | TextFile | RemoteFile] = ()
    stamps: Sequence[Stamp] = ()
    loaded: Sequence[Path] = ()

    @property
    def is_text(self) -> bool:
        return bool(self.files) and isinstance(self.files[0], TextFile)

    @property
    def separator(self) -> str | None:
        """What is between the fields of text files."""
        return next((file.separator for file in self.files if isinstance(file, TextFile)), None)

    @property
    def decimal(self) -> str | None:
        """The decimal sign of text files, if the caller named it."""
        return next((file.decimal for file in self.files if isinstance(file, TextFile)), None)

    @property
    def has_header(self) -> bool:
        """Whether its columns have names of their own; else these are their places."""
        return not self.is_text or all(file.has_header for file in self.files if isinstance(file, TextFile))

    @property
    def paths(self) -> list[Path | RemoteFile]:
        """The files that the table is made of."""
        return [*(file.path if isinstance(file, TextFile) else file for file in self.files), *self.loaded]

    def refuse_changed(self) -> None:
        """Raise if a file has changed since the table was opened.

        Raises:
            DataError: it names the file.
        """
        remote = [file for file in self.files if isinstance(file, RemoteFile)]
        pairs = zip(self.paths, self.stamps, strict=True)
        local = ((path, stamp) for path, stamp in pairs if isinstance(path, Path))
        path = next((path for path, stamp in local if _stamp(path) != stamp), None) or changed(remote)
        if path is not None:
            raise DataError(f"{path} was changed while it was read.", "Wait until it is complete, and start again.")

    def need(self, column: str, role: str, *, fixed: bool = False) -> str:
        """``column``, if the table has it.

        Args:
            column: its name.
            role: what it holds, for messages.
            fixed: no argument names the column, so the table has to change.

        Raises:
            DataError: it does not; the error lists the columns.
        """
        if column in self.columns:
            return column
        if not self.columns:
            raise DataError(f"{self.name} has no columns.", f"It needs at least a column for the {role}.")
        named = "" if role == column else f" ({role})"
        problem = f"{self.name} has no column {column!r}{named}; its columns are {listed(self.columns)}."
        if self.is_text and self.files[0].first_is_data:  # pyright: ignore[reportAttributeAccessIssue]
            remedy = no_header(len(self.columns))
            raise DataError(problem, f"The first line looks like data: {remedy[0].lower()}{remedy[1:]}")
        if self.is_text and self.columns[0].startswith(("#", "%", "//")):
            raise DataError(problem, "The first line looks like a comment: remove it, if the header is below it.")
        if not self.has_header:
            remedy = "Pass a table that has a header as a frame: header=None (--no-header) counts for all text files."
            raise DataError(problem, f"Without header, columns are named by their place. {remedy}")
        remedy = f"Rename the column of the {role} to {column}." if fixed else f"Name the column of the {role}."
        raise DataError(problem, f"{remedy} {did_you_mean(column, self.columns)}")

    def collect(self, columns: Iterable[str]) -> pl.DataFrame:
        """Read some columns.

        Raises:
            DataError: the files cannot be parsed, or hold no rows.
        """
        frame = self.read(self._of(columns))
        if not len(frame):
            raise DataError(f"{self.name} has a header but no rows.", "Give a table with at least one row of data.")
        return frame

    def pointed(self, values: pl.Series) -> pl.Series:
        """Numbers with a decimal comma as numbers with a point, where that is how the table writes them.

        It does if the caller said so; or if its files are separated by semicolons, and no value has a point.
        """
        if not self.is_text or values.dtype != pl.String or self.decimal == ".":
            return values
        if self.decimal is None and (self.separator != ";" or values.str.contains(".", literal=True).any()):
            return values
        comma = values.str.contains(DECIMAL_COMMA)
        if not comma.any():
            return values
        if self.decimal is None:
            warnings.warn(
                f"Numbers in column {values.name!r} of {self.name}, such as {values.filter(comma)[0]!r}, were read "
                "with a decimal comma, as semicolons separate the fields. Pass decimal=',' (--decimal ,) to say so.",
                RediffuseWarning,
                stacklevel=2,
            )
        pointed = pl.when(comma).then(values.str.replace(",", ".", literal=True)).otherwise(values)
        return pl.select(pointed.alias(values.name)).to_series()

    def in_pieces(self, columns: Iterable[str]) -> Table:
        """The table with some columns, ready for `pieces`: text is parsed now, as a whole; Parquet is read later.

        Raises:
            DataError: as `collect`.
        """
        if self.files and not self.is_text:
            return replace(self, frame=self._of(columns))
        frame = self.collect(columns)
        return replace(self, frame=frame.lazy(), columns=frame.columns)

    @cached_property
    def rows(self) -> int:
        """Number of rows of a table from `in_pieces`.

        Raises:
            DataError: there are none, or the files cannot be read.
        """
        rows = self.read(self.frame.select(pl.len())).item()
        if not rows:
            raise DataError(f"{self.name} has a header but no rows.", "Give a table with at least one row of data.")
        return rows

    def pieces(self, column: str) -> Iterator[tuple[int, pl.Series]]:
        """A column of a table from `in_pieces`, PIECE rows at a time, with the row (from 0) where each piece begins.

        Raises:
            DataError: the files cannot be read.
        """
        for start in range(0, self.rows, PIECE):
            yield start, self.read(self.frame.select(column).slice(start, PIECE))[column]

    def _of(self, columns: Iterable[str]) -> pl.LazyFrame:
        """Some columns. Parquet files must agree in these only, and their integers may have different widths.

        Raises:
            DataError: they do not agree, or cannot be read.
        """
        columns = list(dict.fromkeys(columns))
        files = [file for file in self.files if isinstance(file, Path | RemoteFile)]
        if len(files) < 2:
            return self.frame.select(columns)
        schemas = [self._schema(file) for file in files]
        kinds = dict(schemas[0])
        for column in [name for name in columns if name in kinds]:  # the others come from names of folders
            for file, schema in zip(files, schemas, strict=True):
                if column not in schema:
                    problem = f"{file} has no column {column!r}, which {files[0]} has."
                    raise DataError(problem, "Files that are read as one table need the same columns.")
                common = _common(kinds[column], schema[column])
                if common is None:
                    holds = f"holds {schema[column]} values, and {kinds[column]} in {files[0]}"
                    raise DataError(f"{file}: column {column!r} {holds}.", "Write it as one type into all files.")
                kinds[column] = common
        # Polars reads files of one schema at once.
        runs = [list(run) for _, run in groupby(zip(files, schemas, strict=True), key=lambda pair: pair[1])]
        if len(runs) == 1:
            return self.frame.select(columns)
        casts = [pl.col(name).cast(kinds[name]) if name in kinds else pl.col(name) for name in columns]
        return pl.concat([_scan([file for file, _ in run]).select(casts) for run in runs])

    def _schema(self, file: Path | RemoteFile) -> dict[str, pl.DataType]:
        try:
            return dict(_scan([file], False).collect_schema())
        except UNREADABLE as error:
            self.refuse_changed()
            raise DataError(f"{file} cannot be read as Parquet: {first_line(error)}", _TRUNCATED) from None

    def read(self, frame: pl.LazyFrame) -> pl.DataFrame:
        """Collect a frame that was derived from the table's frame.

        Raises:
            DataError: the files cannot be read, or have changed.
        """
        try:
            found = frame.collect()
        except UNREADABLE as error:
            self.refuse_changed()
            for file in self.files:
                if isinstance(file, TextFile):
                    diagnose(file)
            raise DataError(
                f"{self.name} cannot be read: {first_line(error)}",
                "Check that the file is complete and of the kind its name says.",
            ) from None
        self.refuse_changed()
        return found

    def place(self, row: int) -> str:
        """Where row ``row`` (from 0) is, for messages: file and line, or file and row (from 1)."""
        for file in self.files:
            if isinstance(file, TextFile):
                rows = 0
                for number, (line, _) in enumerate(file.records()):
                    rows = number
                    if number == row + 1:
                        return f"{file.path}, line {line}"
            else:
                rows = _scan([file], False).select(pl.len()).collect().item()
                if row < rows:
                    return f"{file}, row {row + 1}"
            row -= rows
        return f"{self.name}, row {row + 1}"


def read_table(
    source: Any,
    what: str,
    *,
    wanted: Sequence[str] = (),
    text: TextOptions | None = None,
    insist: bool = True,
) -> Table:
    """Open a table without reading it through.

    Args:
        source: path, folder, glob, list of paths, or dataframe.
        what: the role of the table, for messages: "interactions", "items", ...
        wanted: columns that should be there; they decide between separators.
        text: how text files are read.
        insist: refuse a text file that the separator of ``text`` does not split, rather than detect another.

    Raises:
        DataError: the path does not exist, is not a table, or is a text file without usable header.
        ConfigError: ``source`` is neither a path nor a dataframe.
        RunError: as `forks.enter`.
    """
    forks.enter()
    text = text or TextOptions()
    for path in source if isinstance(source, (list, tuple)) else [source]:
        refuse_unknown(f"The {what} table", path)
    if isinstance(source, (str, PathLike)):
        return _from_files(_places(source, what), address_of(source) or str(source), wanted, text, insist)
    if isinstance(source, (list, tuple)) and source and all(isinstance(s, (str, PathLike)) for s in source):
        paths = [path for entry in source for path in _places(entry, what)]
        name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        return _from_files(paths, name, wanted, text, insist)
    return _from_frame(source, what)


def _from_frame(source: Any, what: str) -> Table:
    name = f"the {what} dataframe"
    try:
        native = nw.from_native(source)
    except TypeError:
        argument = "source" if what == "interactions" else what
        remedy = "Pass a path or a dataframe (polars, pandas, pyarrow or another one that narwhals supports)."
        if isinstance(source, Dataset):
            remedy = "It needs no reading: pass it to rediffuse.train, or split it."
        raise wrong_type(argument, source, "a table", remedy) from None
    except Exception as error:  # narwhals raises its own errors about column names
        raise DataError(
            f"{name} cannot be used: {' '.join(str(error).split())}", "Give every column a name of its own."
        ) from None
    try:
        if isinstance(source, pl.LazyFrame):
            frame = source.collect()  # once: a plan need not give the same order of rows when it runs again
        elif isinstance(native, nw.LazyFrame):
            frame = native.collect("polars").to_native()
        else:
            frame = native.to_polars()
    except ImportError as error:
        raise DataError(f"{name} cannot be converted: {first_line(error)}", "Run: pip install pyarrow") from None
    except Exception as error:  # whatever the library raises, the cause is the content of the frame
        raise DataError(
            f"{name} cannot be converted: {first_line(error)}",
            "Give each column one type, for example ids all strings: df['user_id'].astype(str).",
        ) from None
    return Table(name, frame.lazy(), frame.columns, {})


def parquet_table(files: Sequence[Path | RemoteFile], name: str, *, hive_partitioning: bool = False) -> Table:
    """Parquet files of one schema as a table.

    Raises:
        DataError: one is missing or damaged.
    """
    stamps = [_stamp(file) if isinstance(file, Path) else None for file in files]
    try:
        frame = _scan(files, hive_partitioning)
        return Table(name, frame, frame.collect_schema().names(), {}, files, stamps)
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be read as Parquet: {first_line(error)}", _TRUNCATED) from None


def _places(source: str | PathLike[str], what: str) -> list[Path | RemoteFile]:
    if (address := address_of(source)) is not None:
        return expand_address(address, what, _ENDINGS)
    return [*_expand(Path(source), what)]


def _from_files(
    found: list[Path | RemoteFile], name: str, wanted: Sequence[str], options: TextOptions, insist: bool
) -> Table:
    paths = [path for path in found if isinstance(path, Path)]
    stamps = [_stamp(path) if isinstance(path, Path) else None for path in found]
    kinds = {kind_of(path) for path in paths} | ({"parquet"} if len(paths) < len(found) else set())
    if len(kinds) > 1:
        raise DataError(
            f"{name} mixes {' and '.join(_KINDS[kind] for kind in sorted(kinds, reverse=True))} files.".replace(
                "text and Parquet", "Parquet and text"
            ),
            "Name files of one kind.",
        )
    kind = next(iter(kinds))
    if kind == "parquet":
        _refuse_other_folders(found)
        # Folders named like date=2024-03-01 stand for a column, which polars ignores by default for lists of paths.
        return parquet_table(found, name, hive_partitioning=_in_hive_folders(found))
    if kind != "text":
        frame = _load(paths, kind)
        return Table(name, frame.lazy(), frame.columns, {}, (), stamps, paths)
    files = [inspect(path, wanted, options, insist) for path in paths]
    first = files[0]
    for file in files[1:]:
        if file.header != first.header:
            raise DataError(
                f"{file.path} has columns {listed(file.header)}; {first.path} has {listed(first.header)}.",
                "Files that are read as one table need the same columns.",
            )
    frame = pl.concat([scan(file) for file in files])
    typed = first.typed
    columns = [column.partition(":")[0] if typed else column for column in first.header]
    types = {c: h.partition(":")[2] for c, h in zip(columns, first.header, strict=True)} if typed else {}
    return Table(name, frame.filter(pl.any_horizontal(pl.all().is_not_null())), columns, types, files, stamps)


_KINDS = {
    "parquet": "Parquet",
    "text": "text",
    "json": "JSON",
    "arrow": "Arrow",
    "arrow stream": "Arrow stream",
}


def _load(paths: list[Path], kind: str) -> pl.DataFrame:
    """Files of JSON or Arrow, one after the other; columns that a file lacks are null."""
    frames: list[pl.DataFrame] = []
    for path in paths:
        try:
            frames.append(read_json(path) if kind == "json" else read_arrow(path, stream=kind == "arrow stream"))
        except UNREADABLE as error:
            raise DataError(f"{path} cannot be read as {_KINDS[kind]}: {first_line(error)}", _TRUNCATED) from None
    try:
        return pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]
    except pl.exceptions.PolarsError as error:
        problem = f"The files of {paths[0]} and {len(paths) - 1} more do not fit together: {first_line(error)}"
        raise DataError(problem, "Write each column as one type into all files.") from None


def _scan(files: Sequence[Path | RemoteFile], hive_partitioning: bool | None = None) -> pl.LazyFrame:
    hive = _in_hive_folders(files) if hive_partitioning is None else hive_partitioning
    local = [file for file in files if isinstance(file, Path)]
    remote = [file.address for file in files if isinstance(file, RemoteFile)]
    frames = [scan_parquet(local, hive_partitioning=hive)] if local else []
    if remote:
        frames.append(scan_objects(remote, hive_partitioning=hive, **scan_options(remote[0])))
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def _in_hive_folders(files: Sequence[Path | RemoteFile]) -> bool:
    return any("=" in file.parent.name for file in files)


def _refuse_other_folders(paths: Sequence[Path | RemoteFile]) -> None:
    """Raise if files lie in folders named column=value, and not all of them for the same columns."""
    columns = [[part.partition("=")[0] for part in path.parent.parts if "=" in part] for path in paths]
    if not any("=" in path.parent.name for path in paths):
        return
    for path, found in zip(paths, columns, strict=True):
        if found != columns[0]:
            folders, others = (
                f"in folders for {listed(names)}" if names else "in no such folder" for names in (found, columns[0])
            )
            raise DataError(
                f"Folders named column=value stand for columns: {path} lies {folders}, and {paths[0]} {others}.",
                "Put all files into folders for the same columns, or list the files to read.",
            )


def _common(kind: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """A type that holds the values of both, None if there is none."""
    if kind == other or other == pl.Null:
        return kind
    if kind == pl.Null:
        return other
    return pl.Int64() if kind.is_integer() and other.is_integer() else None


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _expand(path: Path, what: str) -> list[Path]:
    try:
        folder = path.is_dir()
    except OSError as error:  # a name that is too long
        raise DataError(f"{path} cannot be opened: {error.strerror}.", f"Check the path of the {what} table.") from None
    if folder:
        if (path / "manifest.json").is_file():
            raise DataError(f"{path} is a dataset already.", "Load it with rediffuse.load_dataset.")
        if is_numbered(path):
            problem = f"{path} is a folder of numbered tables, not one table."
            raise DataError(problem, "Read it with rediffuse.read_numbered or `rediffuse prepare`.")
        files = next(filter(None, (files_below(path, *endings) for endings in _ENDINGS)), [])
        if not files:
            raise DataError(
                f"The folder {path} holds no Parquet, CSV or TSV files, and no JSON or Arrow files.",
                f"Name the {what} file itself. Names that begin with _ or . are skipped.",
            )
        return files
    if path.is_file():
        return [path]
    refuse_special(path)
    if any(sign in str(path) for sign in "*?["):
        files = [file for file in _matches(path) if not _is_skipped(set(file.parts).difference(path.parts))]
        if files:
            # A pattern such as ** finds a folder and its content.
            return list(dict.fromkeys(file for match in files for file in _expand(match, what)))
        raise DataError(f"No file matches {path}.", "Check the pattern and the folder.")
    remedy = f"Check the path of the {what} table."
    if path.parent.is_dir():
        near = closest(path.name, [file.name for file in path.parent.iterdir() if file.is_file()])
        if near:
            remedy += f" Did you mean {near!r}?"
    raise DataError(f"{path} does not exist.", remedy)


def _matches(pattern: Path) -> list[Path]:
    """Paths that match, sorted. Of a folder that exists under its literal name, ``data[1]/*.csv``, only the rest is a
    pattern."""
    parts = pattern.parts
    for literal in range(len(parts) - 1, -1, -1):
        begin = Path(*parts[:literal])
        if literal and not begin.is_dir():
            continue
        text = str(Path(glob.escape(str(begin)) if literal else "", *parts[literal:]))
        found = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 (absolute)
        if found:
            return [Path(name) for name in found]
    return []


_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
# Kinds of files in a folder; the first kind that there is is read.
_ENDINGS = (
    ("parquet",),
    tuple(f"{ending}{packed}" for ending in ("csv", "tsv", "txt") for packed in _PACKED),
    tuple(f"{ending}{packed}" for ending in ("jsonl", "ndjson", "json") for packed in _PACKED),
    ("feather", "arrow"),
)


def is_numbered(folder: Path) -> bool:
    """Whether a folder is laid out as docs/large-tables.md says: numbered interactions, with tables of ids beside."""
    beside = any((folder / name).exists() for name in ("users.parquet", "items.parquet"))
    return beside and (folder / "interactions").is_dir()


def files_below(folder: Path, *endings: str) -> list[Path]:
    """Files in a folder and the folders in it, sorted."""
    found = (file for ending in endings for file in folder.rglob(f"*.{ending}") if file.is_file())
    return sorted(file for file in found if not _is_skipped(file.relative_to(folder).parts))


def _is_skipped(parts: Iterable[str]) -> bool:
    """Whether a path belongs to a program that writes tables, such as the temporary folder of a job that was killed."""
    return any(part.startswith(("_", ".")) for part in parts)
