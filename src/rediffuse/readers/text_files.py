"""Text files: encoding, separator, header, and the line of whatever is wrong.

Polars parses. This module detects the separator from the first lines and, once polars refuses a file or a value turns
out bad, finds the line; that may be slow, as it happens once.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any

import polars as pl

from rediffuse.arguments import require_text
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.packing import FIELD, field_limit, is_packed, open_unpacked
from rediffuse.readers.text_faults import QUOTE_REMEDY, is_number, refuse_faults
from rediffuse.table_files import scan_csv

SEPARATORS = ("\t", ",", ";", "|", "::", " ")
_TYPED = re.compile(r"^[^:]+:(token|token_seq|float|float_seq)$")
_SAMPLE = 1 << 16
# Replaces separators of several characters, which polars does not support.
_UNIT_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class TextOptions:
    """What the caller says about text files.

    Attributes:
        separator: between fields, also written as in a shell: ``\\t``; None: detected.
        encoding: None: UTF-8.
        quoting: "standard": quotes enclose fields, as in CSV; "none": quotes are characters like any other.
        header: 0: the first line names the columns; None: there is no header, and columns are named by their place,
            "0", "1", ...
        decimal: what numbers have before their fraction; None: a point, or a comma in files separated by semicolons.

    Raises:
        ConfigError: a value is none of these.
    """

    separator: str | None = None
    encoding: str | None = None
    quoting: str = "standard"
    header: int | None = 0
    decimal: str | None = None

    def __post_init__(self) -> None:
        for name in ("separator", "encoding", "decimal"):
            require_text(name, getattr(self, name))
        if self.quoting not in ("standard", "none"):
            raise ConfigError(f"quoting is {self.quoting!r}.", 'It is "standard" or "none".')
        if self.header is not None and (isinstance(self.header, bool) or self.header != 0):
            raise ConfigError(f"header is {self.header!r}.", "It is 0 (the first line), or None: there is no header.")
        if self.decimal not in (None, ".", ","):
            raise ConfigError(f"decimal is {self.decimal!r}.", 'It is "." or ",".')
        if self.separator is not None:
            object.__setattr__(self, "separator", _unescaped(self.separator))


def _unescaped(separator: str) -> str:
    """A separator that a shell or a YAML file gave as an escape: ``\\t`` is a tab, ``\\x1f`` one byte."""
    if separator in ("tab", "TAB"):
        return "\t"
    if re.fullmatch(r"\\(t|x[0-7][0-9a-fA-F]|u00[0-7][0-9a-fA-F]|0[0-7]{0,2}|\\|\|)", separator):
        return separator[1] if separator[1:] in ("\\", "|") else codecs.decode(separator, "unicode_escape")
    return separator


@dataclass(frozen=True)
class TextFile:
    """How one text file is read.

    Attributes:
        header: names of the columns; their places if the file ``has_header`` not.
        typed: it has a RecBole header such as ``user_id:token``; quotes have no meaning in it.
        quoted: whether quotes enclose fields.
        decimal: what numbers have before their fraction; None: it was not said.
        first_is_data: the header looks like a row of data.
        blank: blank lines at the beginning.
    """

    path: Path
    separator: str
    encoding: str
    header: tuple[str, ...]
    typed: bool
    quoted: bool = True
    has_header: bool = True
    decimal: str | None = None
    first_is_data: bool = False
    blank: int = 0

    def open(self) -> IO[str]:
        return TextIOWrapper(open_unpacked(self.path), encoding=self.encoding, newline="")

    @property
    def is_split(self) -> bool:
        """Whether the separator is one that polars does not know, so that lines are split by it."""
        return len(self.separator.encode()) > 1

    def records(self, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
        """(line in the file, fields) of every record that is not blank, after the header, which may be in no line.

        Raises:
            DataError: with ``strict``, a quote that is not closed or not at the edge of a field.
        """
        if not self.has_header:
            yield 0, list(self.header)
        with self.open() as text:
            if self.is_split:
                for number, line in enumerate(text, start=1):
                    if line.strip():
                        yield number, line.rstrip("\r\n").split(self.separator)
                return
            quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
            csv.field_size_limit(min(field_limit(), 2**31 - 1))  # for the whole process
            reader = csv.reader(text, delimiter=self.separator, quoting=quoting, strict=strict)
            start = 1
            try:
                for fields in reader:
                    if any(fields):
                        yield start, fields
                    start = reader.line_num + 1
            except csv.Error as error:
                raise DataError(
                    f"{self.path}, line {start} cannot be split into fields: {error}.",
                    QUOTE_REMEDY,
                ) from None


def scan(file: TextFile) -> pl.LazyFrame:
    """The file as a lazy frame of strings.

    Raises:
        DataError: it cannot be parsed, or has one of the faults of `refuse_faults`; the error names the line.
    """
    source: Any = file.path
    separator = file.separator
    if file.encoding != "utf-8-sig" or file.is_split or is_packed(file.path):
        content = _read_bytes(file)
        refuse_faults(file, BytesIO(content))
        if file.is_split:
            content = content.replace(separator.encode(), _UNIT_SEPARATOR.encode())
            separator = _UNIT_SEPARATOR
        source = content
    else:
        with file.path.open("rb") as stream:
            refuse_faults(file, stream)
    names = [column.partition(":")[0] if file.typed else column for column in file.header]
    try:
        return scan_csv(
            source,
            separator=separator,
            has_header=file.has_header,
            quote_char='"' if file.quoted else None,
            infer_schema=False,
            **(
                {"new_columns": names}
                if file.has_header
                else {"schema": dict.fromkeys(names, pl.String), "skip_lines": file.blank}
            ),
        )
    except pl.exceptions.PolarsError as error:
        diagnose(file)
        raise DataError(f"{file.path} cannot be read: {first_line(error)}", "Check the file.") from None


def inspect(path: Path, wanted: Sequence[str], options: TextOptions, insist: bool) -> TextFile:
    """Encoding, separator and header of a text file, from its beginning.

    Args:
        path: path of the file.
        wanted: columns that should be there; they decide between separators.
        options: what the caller says.
        insist: refuse a separator that does not split the header, rather than detect the right one.

    Raises:
        DataError: no text, no header, or not readable with that encoding or separator.
    """
    separator, encoding = options.separator, options.encoding
    if encoding is not None:
        try:
            encoding = codecs.lookup(encoding).name
            TextIOWrapper(BytesIO(), encoding)  # base64 and the like are not encodings of text
        except (LookupError, ValueError):
            raise DataError(f"There is no encoding {encoding!r}.", 'For example: "latin-1", "cp1252".') from None
    if encoding in (None, "utf-8"):
        encoding = "utf-8-sig"  # drops a byte order mark, if there is one
    sample, whole = _beginning(path)
    if not sample.removeprefix(codecs.BOM_UTF8).strip():
        raise DataError(f"{path} is empty.", "Give a table with a header line and at least one row.")
    try:
        decoder = codecs.getincrementaldecoder(encoding)()
        text = decoder.decode(sample)
    except UnicodeError:
        _refuse_encoding(path, encoding)
        raise
    if not text.strip():
        raise DataError(f"{path} holds nothing but spaces.", "Give a table with a header line and at least one row.")
    if "\r" in text and "\n" not in text:
        raise DataError(f"The lines of {path} end in a bare carriage return.", "Save it with usual line ends (LF).")
    lines = [line for line in re.split(r"\r?\n", text) if line.strip()]
    # The last line of the sample may be cut short.
    lines = lines[:50] if whole else lines[: max(1, len(lines) - 1)][:50]
    lines[0] = lines[0].lstrip("\ufeff")
    if mark := re.match(r"sep=(.)\s*$", lines[0]):
        raise DataError(
            f"The first line of {path} is {lines[0].strip()!r}, which says to Excel that {mark.group(1)!r} separates.",
            "Remove that line.",
        )
    if options.header is None and re.match(r"(# |#$|%%|// )", lines[0]):
        raise DataError(
            f"{path} begins with a comment: {lines[0][:60]!r}.", "Remove the comments: grep -v '^#' FILE > OTHER."
        )
    quoted = options.quoting != "none"
    header_of = {sep: _fields(lines[0], sep, quoted) for sep in SEPARATORS}
    likely = _sniff(lines, header_of, wanted)
    if separator is None:
        separator = likely or ","
    elif not separator or separator in ('"', "\n", "\r"):
        raise DataError(f"{separator!r} cannot be a separator.", 'For example: separator=";".')
    header = _fields(lines[0], separator, quoted)
    if len(header) == 1 and likely and likely != separator and not insist:
        separator, header = likely, header_of[likely]
    elif len(header) == 1 and likely and likely != separator:
        raise DataError(
            f"{path} has a single column {header[0]!r} when separated by {_named(separator)}.",
            f"It looks separated by {_named(likely)}: pass separator={likely!r}, or leave it out.",
        )
    has_header = options.header is not None
    if not has_header and all(_TYPED.match(name) for name in header):
        problem = f"header=None was given, and the first line of {path} is a header: {listed(header[:4])}."
        raise DataError(problem, "Leave it out (--no-header).")
    if not has_header and separator == " " and any(line.startswith(" ") or "  " in line.rstrip() for line in lines):
        raise DataError(
            f"Several spaces are between the fields of {path}, or some before the first.",
            "Leave one between them: sed -E 's/^ +//; s/ +/ /g' FILE > OTHER.",
        )
    if not has_header:
        header = [str(place) for place in range(len(header))]
    first_is_data = has_header and _looks_like_data(header, lines[1:], separator, quoted, wanted)
    if first_is_data and len(set(header)) < len(header):
        raise DataError(f"The first line of {path} looks like data: {listed(header[:6])}.", no_header(len(header)))
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated:
        raise DataError(f"{path} has several columns named {listed(sorted(repeated))}.", "Rename them in the header.")
    header = [name or f"column {place}" for place, name in enumerate(header, start=1)]
    typed = all(_TYPED.match(name) for name in header)
    is_split = len(separator.encode()) > 1  # tools that write separators of several characters do not quote
    return TextFile(
        path=path,
        separator=separator,
        encoding=encoding,
        header=tuple(header),
        typed=typed,
        quoted=quoted and not typed and not is_split,
        has_header=has_header,
        decimal=options.decimal,
        first_is_data=first_is_data,
        blank=next(count for count, line in enumerate(text.split("\n")) if line.strip("\ufeff\r ")),
    )


def _beginning(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, at least its first line; and whether these are all.

    Raises:
        DataError: the first line is longer than a field may be.
    """
    with open_unpacked(path) as file:
        sample = file.read(_SAMPLE)
        while b"\n" not in sample and len(block := file.read(len(sample))):
            sample += block
            if len(sample) > field_limit():
                raise DataError(
                    f"{path}, line 1 is longer than {field_limit():,} bytes.",
                    f"Check that it is a table. Set {FIELD} to the bytes that a line may have, if it is.",
                )
        return sample, not file.read(1)


def no_header(width: int) -> str:
    """How to read a file without header."""
    columns = 'user="0", item="1"' if width > 1 else "the only column is 0"
    return (
        "Add a header line with column names; or pass header=None (--no-header), and name columns by their place from "
        f"0: {columns}."
    )


# A date in ISO form, with or without a clock time.
DATE = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?$"


def _is_value(cell: str) -> bool:
    return is_number(cell) or re.match(DATE, cell.strip()) is not None


def _looks_like_data(header: list[str], lines: list[str], separator: str, quoted: bool, wanted: Sequence[str]) -> bool:
    """Whether the first line holds numbers or dates where the lines below it do, and no name that was asked for."""
    if any(name.partition(":")[0] in wanted for name in header) or not any(map(_is_value, header)):
        return False
    if all(map(_is_value, header)):
        return True
    rows = [fields for line in lines if len(fields := _fields(line, separator, quoted)) == len(header)]
    return bool(rows) and any(
        _is_value(name) and all(_is_value(row[place]) for row in rows) for place, name in enumerate(header)
    )


def _sniff(lines: list[str], header_of: dict[str, list[str]], wanted: Sequence[str]) -> str | None:
    """The separator that yields the wanted columns, else the one that splits all lines into as many fields."""
    best: tuple[tuple[float, ...], str] | None = None
    for place, (separator, header) in enumerate(header_of.items()):
        if len(header) < 2:
            continue
        names = {name.partition(":")[0] for name in header} | set(header)
        same = sum(len(_fields(line, separator)) == len(header) for line in lines) / len(lines)
        # Text may hold any of the others, and it hardly holds as many double colons in every line.
        certain = separator == "::" and same == 1.0
        # A space also splits titles and clock times, so it is chosen only if nothing else fits.
        rank = (sum(name in names for name in wanted), certain, same > 0.5 and separator != " ", same, -place)
        if best is None or rank > best[0]:
            best = rank, separator
    return best[1] if best else None


def _named(separator: str) -> str:
    return {"\t": r"'\t' (tab)", " ": "' ' (space)"}.get(separator, repr(separator))


def _fields(line: str, separator: str, quoted: bool = True) -> list[str]:
    if len(separator) > 1 or not quoted:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator))
    except (csv.Error, StopIteration):
        return [line]


def diagnose(file: TextFile) -> None:
    """Find what is wrong with a text file that polars refuses.

    Raises:
        DataError: the first fault; the function returns if it finds none.
    """
    _refuse_encoding(file.path, file.encoding)
    width, first = len(file.header), "header" if file.has_header else "first line"
    for line, fields in file.records(strict=True):
        if len(fields) > width:
            raise DataError(
                f"{file.path}, line {line} has {len(fields)} fields and the {first} has {width}.",
                "Fix the line: quote fields that contain the separator, or remove the extra fields.",
            )
    with open_unpacked(file.path) as stream:
        for number, line in enumerate(stream, start=1):
            if b"\r" in line.rstrip(b"\r\n"):
                raise DataError(
                    f"{file.path}, line {number} holds a bare carriage return, which only some programs end a line at.",
                    "Save the file with one kind of line ends (LF).",
                )
    if file.quoted:
        with file.open() as text:
            for number, line in enumerate(text, start=1):
                if line.count('"') % 2:
                    raise DataError(
                        f"{file.path}, line {number} has a quote that is not closed in this line.", QUOTE_REMEDY
                    )


def _refuse_encoding(path: Path, encoding: str) -> None:
    """Raise a `DataError` at the first bytes that are not text in ``encoding``; return if there are none."""
    name = "utf-8" if encoding == "utf-8-sig" else encoding  # dropping the mark at the start would shift the count
    decoder = codecs.getincrementaldecoder(name)()
    offset = lines = 0
    with open_unpacked(path) as file:
        while True:
            block = file.read(1 << 20)
            kept = len(decoder.getstate()[0])
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                at = offset - kept + error.start
                line = lines + 1 + block[: max(error.start - kept, 0)].count(b"\n")
                wrong = error.object[error.start]
                guess = "utf-16" if wrong >= 0xFE else "latin-1"
                raise DataError(
                    f"{path} is not {name.upper()}: byte {at:,} (line {line}) is 0x{wrong:02x}.",
                    f'Pass the encoding it was written in, for example encoding="{guess}" or "cp1252".',
                ) from None
            except UnicodeError as error:  # about the whole stream, such as UTF-16 without its mark
                raise DataError(
                    f"{path} is not {name.upper()}: {first_line(error)}",
                    'Pass the encoding it was written in, for example encoding="utf-16-le" or "latin-1".',
                ) from None
            if not block:
                return
            offset += len(block)
            lines += block.count(b"\n")


def _read_bytes(file: TextFile) -> bytes:
    """The content as UTF-8, unpacked."""
    with open_unpacked(file.path) as stream:
        content = stream.read()
    if file.encoding == "utf-8-sig":
        return content
    try:
        return content.decode(file.encoding).encode()
    except UnicodeError as error:
        _refuse_encoding(file.path, file.encoding)
        raise DataError(f"{file.path} is not {file.encoding.upper()}: {error}.", "Save it as UTF-8.") from None


def listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
