"""Text files: encoding, separator, header, and the line of whatever is wrong.

Polars parses. This module detects the separator from the first lines and, once polars refuses a file or a value turns
out bad, finds the line; that may be slow, as it happens once.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import IO, Any

import polars as pl

from rediffuse.errors import DataError
from rediffuse.table_files import scan_csv

SEPARATORS = ("\t", ",", ";", "|", "::", " ")
_TYPED = re.compile(r"^[^:]+:(token|token_seq|float|float_seq)$")
_SAMPLE = 1 << 16
# Replaces separators of several characters, which polars does not support.
_UNIT_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class TextFile:
    """How one text file is read.

    ``typed``: it has a RecBole header such as ``user_id:token``; quotes have no meaning in it.
    """

    path: Path
    separator: str
    encoding: str
    header: tuple[str, ...]
    typed: bool

    def open(self) -> IO[str]:
        return TextIOWrapper(_open_bytes(self.path), encoding=self.encoding, newline="")

    def records(self, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
        """(line in the file, fields) of every record that is not blank, including the header.

        Raises:
            DataError: with ``strict``, a quote that is not closed or not at the edge of a field.
        """
        with self.open() as text:
            if len(self.separator) > 1:
                for number, line in enumerate(text, start=1):
                    if line.strip():
                        yield number, line.rstrip("\r\n").split(self.separator)
                return
            quoting = csv.QUOTE_NONE if self.typed else csv.QUOTE_MINIMAL
            # Set for the whole process; polars has no limit, and this must find the rows that polars read.
            csv.field_size_limit(2**31 - 1)
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
                    'Close or remove the quote ("), or write quotes inside quoted fields twice.',
                ) from None


def scan(file: TextFile) -> pl.LazyFrame:
    """The file as a lazy frame of strings.

    Raises:
        DataError: it cannot be parsed; the error names the line.
    """
    plain = file.encoding == "utf-8-sig" and len(file.separator) == 1
    source: Any = file.path
    separator = file.separator
    if not plain or _is_gzip(file.path):
        content = _read_bytes(file)
        if len(separator) > 1:
            content = content.replace(separator.encode(), _UNIT_SEPARATOR.encode())
            separator = _UNIT_SEPARATOR
        source = content
    try:
        return scan_csv(
            source,
            separator=separator,
            # Tools that write separators of several characters do not quote.
            quote_char=None if file.typed or separator == _UNIT_SEPARATOR else '"',
            infer_schema=False,
            new_columns=[column.partition(":")[0] if file.typed else column for column in file.header],
        )
    except pl.exceptions.PolarsError as error:
        diagnose(file)
        raise DataError(f"{file.path} cannot be read: {first_line(error)}", "Check the file.") from None


def inspect(path: Path, wanted: Sequence[str], separator: str | None, encoding: str | None, insist: bool) -> TextFile:
    """Encoding, separator and header of a text file, from its beginning.

    Args:
        path: path of the file.
        wanted: columns that should be there; they decide between separators.
        separator: None to detect it.
        encoding: None for UTF-8.
        insist: refuse a ``separator`` that does not split the header, rather than detect the right one.

    Raises:
        DataError: no text, no header, or not readable with that encoding or separator.
    """
    if encoding is not None:
        try:
            encoding = codecs.lookup(encoding).name
            TextIOWrapper(BytesIO(), encoding)  # base64 and the like are not encodings of text
        except (LookupError, ValueError):
            raise DataError(f"There is no encoding {encoding!r}.", 'For example: "latin-1", "cp1252".') from None
    if encoding in (None, "utf-8"):
        encoding = "utf-8-sig"  # drops a byte order mark, if there is one
    with _open_bytes(path) as file:
        sample = file.read(_SAMPLE)
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
    lines = [line for line in text.splitlines() if line.strip()]
    # The last line of the sample may be cut short.
    lines = lines[: max(1, len(lines) - 1)][:50] if len(sample) == _SAMPLE else lines[:50]
    header_of = {sep: _fields(lines[0], sep) for sep in SEPARATORS}
    likely = _sniff(lines, header_of, wanted)
    if separator is None:
        separator = likely or ","
    elif not separator or separator in ('"', "\n", "\r"):
        raise DataError(f"{separator!r} cannot be a separator.", 'For example: separator=";".')
    header = _fields(lines[0], separator)
    if len(header) == 1 and likely and likely != separator and not insist:
        separator, header = likely, header_of[likely]
    elif len(header) == 1 and likely and likely != separator:
        raise DataError(
            f"{path} has a single column {header[0]!r} when separated by {_named(separator)}.",
            f"It looks separated by {_named(likely)}: pass separator={likely!r}, or leave it out.",
        )
    repeated = {name for name in header if name and header.count(name) > 1}
    if repeated:
        raise DataError(f"{path} has several columns named {listed(sorted(repeated))}.", "Rename them in the header.")
    header = [name or f"column {place}" for place, name in enumerate(header, start=1)]
    typed = all(_TYPED.match(name) for name in header)
    return TextFile(path, separator, encoding, tuple(header), typed)


def _sniff(lines: list[str], header_of: dict[str, list[str]], wanted: Sequence[str]) -> str | None:
    """The separator that yields the wanted columns, else the one that splits all lines into as many fields."""
    best: tuple[tuple[float, ...], str] | None = None
    for place, (separator, header) in enumerate(header_of.items()):
        if len(header) < 2:
            continue
        names = {name.partition(":")[0] for name in header} | set(header)
        same = sum(len(_fields(line, separator)) == len(header) for line in lines) / len(lines)
        # A space or a double colon also splits titles and clock times, so they are chosen only if nothing else fits.
        rank = (sum(name in names for name in wanted), same > 0.5 and separator != " ", same, -place)
        if best is None or rank > best[0]:
            best = rank, separator
    return best[1] if best else None


def _named(separator: str) -> str:
    return {"\t": r"'\t' (tab)", " ": "' ' (space)"}.get(separator, repr(separator))


def _fields(line: str, separator: str) -> list[str]:
    if len(separator) > 1:
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
    width = len(file.header)
    for line, fields in file.records(strict=True):
        if len(fields) > width:
            raise DataError(
                f"{file.path}, line {line} has {len(fields)} fields and the header has {width}.",
                "Fix the line: quote fields that contain the separator, or remove the extra fields.",
            )


def _refuse_encoding(path: Path, encoding: str) -> None:
    """Raise a `DataError` at the first bytes that are not text in ``encoding``; return if there are none."""
    name = "utf-8" if encoding == "utf-8-sig" else encoding  # dropping the mark at the start would shift the count
    decoder = codecs.getincrementaldecoder(name)()
    offset = lines = 0
    with _open_bytes(path) as file:
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
    with _open_bytes(file.path) as stream:
        content = stream.read()
    if file.encoding == "utf-8-sig":
        return content
    try:
        return content.decode(file.encoding).encode()
    except UnicodeError as error:
        _refuse_encoding(file.path, file.encoding)
        raise DataError(f"{file.path} is not {file.encoding.upper()}: {error}.", "Save it as UTF-8.") from None


def _open_bytes(path: Path) -> IO[bytes]:
    return _Gzip(path) if _is_gzip(path) else path.open("rb")  # pyright: ignore[reportReturnType]


class _Gzip(gzip.GzipFile):
    """A gzip file whose damage, wherever it shows, is a `DataError`."""

    def read(self, size: int | None = -1) -> bytes:
        with self._refusing_damage():
            return super().read(size)

    def read1(self, size: int = -1) -> bytes:
        with self._refusing_damage():
            return super().read1(size)

    @contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.name} is a damaged gzip file: {error}.", "Download or compress it again.") from None


def magic(path: Path) -> bytes:
    """The first four bytes of a file.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}.", "Check the permissions of the file.") from None


def _is_gzip(path: Path) -> bool:
    return magic(path)[:2] == b"\x1f\x8b"


def listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
