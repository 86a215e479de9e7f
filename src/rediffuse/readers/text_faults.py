"""Faults that a parser of CSV does not see: quotes that swallow lines, and files put together with ``cat``.

One pass over the bytes, before polars parses them. Most files have no quotes, and are searched at the speed of memory.
"""

from __future__ import annotations

import codecs
import csv
from collections.abc import Iterator
from io import TextIOWrapper
from typing import IO, TYPE_CHECKING

import numpy as np

from rediffuse.errors import DataError
from rediffuse.readers.packing import FIELD, field_limit

if TYPE_CHECKING:
    from rediffuse.readers.text_files import TextFile

QUOTE_REMEDY = (
    'If quotes are characters like any other, pass quoting="none" (--quoting none). If not, close or remove the quote '
    '("), and write quotes inside quoted fields twice.'
)
_BLOCK = 1 << 22
# Records of several lines that are looked at again, and usual ones that they are compared with.
_SUSPECTS, _USUAL = 100, 200
_MARK = codecs.BOM_UTF8


def refuse_faults(file: TextFile, stream: IO[bytes]) -> None:
    """Raise at the first fault.

    Args:
        file: how it is read.
        stream: its content in UTF-8, at the beginning.

    Raises:
        DataError: a line is a header again, begins with a byte order mark or is too long; or a quoted field spans lines
            that look like rows.
    """
    header, after_header = _first_line(stream) if file.has_header else (b"", 0)
    irregular = False
    lines = position = 0
    for block in _blocks(stream, file):
        _refuse_marks(file, block, lines, first=not position)
        if header:
            _refuse_header(file, block, header, lines, max(after_header - position, 0))
        if file.quoted and not irregular and b'"' in block:
            irregular = _has_irregular_quotes(block, file.separator.encode())
        lines += block.count(b"\n")
        position += len(block)
    if irregular:
        stream.seek(0)
        _refuse_swallowed(file, stream)


def _first_line(stream: IO[bytes]) -> tuple[bytes, int]:
    """The first line that is not blank, without mark and line end; and where the next one begins."""
    stream.seek(0)
    after = 0
    for line in stream:
        after += len(line)
        if line.removeprefix(_MARK).strip():
            return line.removeprefix(_MARK).rstrip(b"\r\n"), after
    return b"", after


def _blocks(stream: IO[bytes], file: TextFile) -> Iterator[bytes]:
    """Pieces of the stream that end with a line.

    Raises:
        DataError: a line is longer than a field may be.
    """
    stream.seek(0)
    limit, number, kept = field_limit(), 1, []
    while block := stream.read(_BLOCK):
        end = block.rfind(b"\n") + 1
        begin = block.find(b"\n") if end else len(block)
        if sum(map(len, kept)) + begin > limit:
            raise DataError(
                f"{file.path}, line {number} is longer than {limit:,} bytes.",
                f"Check that it is a table. Set {FIELD} to the bytes that a line may have, if it is.",
            )
        if not end:
            kept.append(block)
            continue
        whole = b"".join([*kept, block[:end]])
        kept = [block[end:]]
        number += whole.count(b"\n")
        yield whole
    if rest := b"".join(kept):
        yield rest


def _refuse_marks(file: TextFile, block: bytes, lines: int, *, first: bool) -> None:
    at = 0 if not first and block.startswith(_MARK) else block.find(b"\n" + _MARK) + 1
    if at or (not first and block.startswith(_MARK)):
        line = lines + 1 + block[:at].count(b"\n")
        raise DataError(
            f"{file.path}, line {line} begins with a byte order mark: another file seems to begin there.",
            "Give the files as a list or a folder, or remove the mark (and the header) in that line.",
        )


def _refuse_header(file: TextFile, block: bytes, header: bytes, lines: int, begin: int) -> None:
    if len(file.header) == 1 and not _is_certain(file.header[0]):
        return  # a column of one name may hold that name as a value
    at = begin if block.startswith(header, begin) else block.find(b"\n" + header, begin) + 1
    while at or (begin == 0 and block.startswith(header)):
        if block[at + len(header) : at + len(header) + 1] in (b"", b"\n", b"\r"):
            line = lines + 1 + block[:at].count(b"\n")
            raise DataError(
                f"{file.path}, line {line} is the header again: another file seems to begin there.",
                "Give the files as a list or a folder, or remove the line.",
            )
        begin = at + 1
        at = block.find(b"\n" + header, at) + 1


def _is_certain(name: str) -> bool:
    return "_" in name or ":" in name or name.casefold().endswith("id")


def _has_irregular_quotes(block: bytes, separator: bytes) -> bool:
    """Whether a quote may be anything but the beginning or the end of a field of one line.

    Args:
        block: (bytes,) whole lines.
        separator: one byte.
    """
    data = np.frombuffer(block, dtype=np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    edge = np.zeros(256, dtype=bool)
    edge[[separator[0], ord("\n"), ord("\r"), ord('"')]] = True
    before = np.where(quotes > 0, data[quotes - 1], ord("\n"))
    after = np.where(quotes + 1 < len(data), data[np.minimum(quotes + 1, len(data) - 1)], ord("\n"))
    opening = np.arange(len(quotes)) % 2 == 0
    if len(quotes) % 2 or not edge[before[opening]].all() or not edge[after[~opening]].all():
        return True
    ends = np.flatnonzero(data == ord("\n"))
    return bool((np.searchsorted(quotes, ends) % 2).any())


def _refuse_swallowed(file: TextFile, stream: IO[bytes]) -> None:
    """Read the records one by one, and look at those of several lines."""
    pieces: list[str] = []

    def lines() -> Iterator[str]:
        size, limit = 0, field_limit()
        for line in text:
            size = size + len(line) if pieces else len(line)
            pieces.append(line)
            if size > limit:
                raise DataError(
                    f"{file.path}, line {start} begins a quoted field that is longer than {limit:,} bytes.",
                    f"{QUOTE_REMEDY} Set {FIELD} to the bytes that a field may have, if it is none of these.",
                )
            yield line

    text = TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="")
    csv.field_size_limit(min(field_limit(), 2**31 - 1))
    reader = csv.reader(lines(), delimiter=file.separator, strict=True)
    start, spread = 1, 0
    suspects: list[tuple[int, int, list[str]]] = []
    usual: list[list[str]] = []
    try:
        for fields in reader:
            if len(pieces) > 1:
                spread += 1
                rows = sum(_has_width(piece, file) for piece in pieces)
                if len(suspects) < _SUSPECTS and rows * 2 >= len(pieces) and rows > 1 and _has_width(pieces[-1], file):
                    suspects.append((start, reader.line_num, list(pieces)))
            elif len(fields) == len(file.header) and (start > 1 or not file.has_header) and len(usual) < _USUAL:
                usual.append(fields)
            start = reader.line_num + 1
            pieces.clear()
    except csv.Error as error:
        remedy = QUOTE_REMEDY
        if any('\\"' in piece for piece in pieces):
            remedy += (
                " If quotes are written as \\\", read the file with pandas (escapechar='\\\\'), and pass the frame."
            )
        raise DataError(f"{file.path}, line {start} cannot be split into fields: {error}.", remedy) from None
    finally:
        text.detach()  # the stream is the caller's
    if not usual and spread > 1:
        return  # every row spans lines: no quotes are stray
    # Codes such as u7 have digits and no spaces; a name may have spaces in few rows.
    checks = [
        (all(map(is_number, column)), all(" " not in one and any(map(str.isdigit, one)) for one in column))
        for column in zip(*usual, strict=True)
    ]
    for first, last, lines_of in suspects:
        rows = sum(_is_row(piece, file, checks) for piece in lines_of)
        if rows * 2 >= len(lines_of) and rows > 1 and _is_row(lines_of[-1], file, checks):
            raise DataError(
                f"{file.path}, lines {first} to {last}: a quote in the first is closed in the last, and these lines "
                "look like rows of their own.",
                f"{QUOTE_REMEDY} If these lines are one value, read it with pandas, and pass the frame.",
            )


def _splits(line: str, file: TextFile) -> Iterator[list[str]]:
    """The fields of a line alone, with quotes as characters and as quotes; where they are as many as in the header."""
    line = line.rstrip("\r\n")
    for fields in (line.split(file.separator), next(csv.reader([line], delimiter=file.separator), [])):
        if len(fields) == len(file.header):
            yield fields


def _has_width(line: str, file: TextFile) -> bool:
    return any(True for _ in _splits(line, file))


def _is_row(line: str, file: TextFile, checks: list[tuple[bool, bool]]) -> bool:
    """Whether a line alone has the fields of a row, with numbers and without spaces where usual rows have them so."""
    return any(
        not checks
        or all(
            (is_number(field) or not number or not field.strip('" ')) and (" " not in field or not single)
            for field, (number, single) in zip(fields, checks, strict=True)
        )
        for fields in _splits(line, file)
    )


def is_number(text: str) -> bool:
    """Whether text is a number, in quotes or not."""
    try:
        float(text.strip('"'))
    except ValueError:
        return False
    return True
