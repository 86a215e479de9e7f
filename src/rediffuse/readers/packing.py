"""What a file is, by its first bytes, and its content unpacked.

Names of files lie: a pickle is called ``.csv``, a CSV file packed with gzip has no ``.gz``. So only the first bytes
count. Text packed with gzip, bzip2, xz or zstandard is unpacked, up to a limit; anything else that is no table is
refused with what it is and how to convert it.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import lzma
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import IO, Any, Literal

from rediffuse.errors import ConfigError, DataError
from rediffuse.memory import free_memory

Kind = Literal["parquet", "arrow", "arrow stream", "json", "text"]

# Options of the environment, in bytes.
UNPACKED = "REDIFFUSE_MAX_UNPACKED"
FIELD = "REDIFFUSE_MAX_FIELD"
_FIELD_BYTES = 64 << 20
_SAMPLE = 1 << 12
_CSV = "Write the table as CSV or Parquet"

_PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"(\xb5/\xfd": "zstandard",
}
_TABLES: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow stream"}
_PICKLE = (
    "a pickle, which can run code when it is loaded",
    "Load it where you trust it, with pandas or pickle, and write the table with to_parquet or to_csv.",
)
_FOREIGN = {
    b"FEA1": ("a Feather file of version 1", "Write it again: pyarrow.feather.write_feather(table, path, version=2)."),
    b"\x93NUMPY": ("a NumPy array", f"{_CSV}, for example with numpy.savetxt(path, array, delimiter=',')."),
    b"\x89HDF\r\n": ("an HDF5 file", f"{_CSV}: pandas.read_hdf(path).to_parquet(other)."),
    b"ORC": ("an ORC file", f"{_CSV}: pandas.read_orc(path).to_parquet(other)."),
    b"Obj\x01": ("an Avro file", f"{_CSV}, for example with the read_avro of polars."),
    b"SQLite format 3\x00": ("an SQLite database", "Export the table as CSV: sqlite3 -header -csv FILE 'select ...'."),
    b"PK": ("a zip archive or a spreadsheet", "Unpack it, or export it as CSV or Parquet."),
    b"\xd0\xcf\x11\xe0": ("an Excel file", "Export the sheet as CSV."),
    b"7z\xbc\xaf": ("a 7z archive", "Unpack it: 7z x FILE."),
    b"Rar!": ("a RAR archive", "Unpack it: unrar x FILE."),
    b'\x04"M\x18': ("packed with LZ4", "Unpack it: lz4 -d FILE."),
    b"\x1f\x9d": ("packed with compress", "Unpack it: uncompress FILE."),
    b"%PDF": ("a PDF", f"{_CSV}."),
    b"MATLAB 5.0": ("a MATLAB file", f"{_CSV}: scipy.io.loadmat(path) gives its arrays."),
    b"X\n\x00\x00": ("an R data file", "Write the table with write.csv(readRDS(file), other, row.names = FALSE)."),
    b"RDX": ("an R data file", "Write the table with write.csv(table, file, row.names = FALSE)."),
    b"version https://git-lfs": ("a pointer of Git LFS, not the file itself", "Get the file: git lfs pull."),
}
_WEB_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml)", re.IGNORECASE)
_JSON = re.compile(rb"\s*(\{\s*(\"|\}|$)|\[\s*[\[{])")
_PYTHON_DICT = re.compile(rb"\s*\[?\s*\{\s*u?'")
# Protocols 0 and 1, which have no mark, of lists, dicts, tuples and objects.
_PICKLE_TEXT = re.compile(
    rb"\(*(\(?[dl]p\d+\n|[\]}]q.|c(__builtin__|builtins|copyreg|copy_reg|collections|os|posix|nt|subprocess)\n"
    rb"|c(pandas|numpy|scipy|polars|torch)[\w.]*\n|c[\w.]+\n\w+\n(p\d+\n|q\x00))",
    re.DOTALL,
)


def kind_of(path: Path) -> Kind:
    """What kind of table a file holds, unpacked.

    Raises:
        DataError: it holds no table, is no file, or cannot be opened.
    """
    start = _head(path)
    packed = packing(start)
    if packed is not None:
        with open_unpacked(path) as file:
            start = file.read(_SAMPLE)
    kind: Kind | None = next((kind for magic, kind in _TABLES.items() if start.startswith(magic)), None)
    if kind is not None and packed is not None:
        raise DataError(f"{path} is {_named(kind)} packed with {packed}.", "Unpack it, and give what was in it.")
    if kind is not None:
        return kind
    found = _foreign(start)
    if found is not None:
        within = f"packed with {packed}, and inside it is " if packed else ""
        raise DataError(f"{path} is {within}{found[0]}.", found[1])
    if packed is None and path.suffix in (".parquet", ".pq"):
        return "parquet"
    return "json" if _JSON.match(start.removeprefix(b"\xef\xbb\xbf")) else "text"


def _foreign(start: bytes) -> tuple[str, str] | None:
    """What these first bytes are, and how to convert it; None if they may be text."""
    for magic, found in _FOREIGN.items():
        if start.startswith(magic):
            return found
    if re.match(rb"\x80[\x02-\x05]", start) or _PICKLE_TEXT.match(start):
        return _PICKLE
    if packing(start):
        return f"packed with {packing(start)}", "Unpack it once."
    if start[257:262] == b"ustar":
        return "a tar archive", "Unpack it (tar -xf FILE), and name the table in it."
    if _WEB_PAGE.match(start):
        return (
            "a web page or XML",
            "Download the file itself: such a page often says that a login or consent is missing.",
        )
    if _PYTHON_DICT.match(start):
        return (
            "a Python dict per line, not JSON",
            "Convert it: for line in source: target.write(json.dumps(ast.literal_eval(line)) + '\\n')",
        )
    return None


def _named(kind: Kind) -> str:
    return "a Parquet file" if kind == "parquet" else "an Arrow file"


def packing(start: bytes) -> str | None:
    """How a file with these first bytes is packed; None if it is not."""
    return next((name for magic, name in _PACKED.items() if start.startswith(magic)), None)


def is_packed(path: Path) -> bool:
    return packing(_head(path)) is not None


def _head(path: Path) -> bytes:
    refuse_special(path)
    try:
        with path.open("rb") as file:
            return file.read(_SAMPLE)
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}.", "Check the permissions of the file.") from None


def refuse_special(path: Path) -> None:
    """Raise if a path exists and is no plain file: reading a pipe may wait for ever.

    Raises:
        DataError: a folder, pipe, socket or device.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # whoever opens it says why
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder.", "Name a file in it.")
    if stat.S_ISFIFO(mode):
        raise DataError(
            f"{path} is a pipe, which can be read only once; tables are read more than once.",
            "Write what comes out of it to a file, and name that.",
        )
    what = "a socket" if stat.S_ISSOCK(mode) else "a device"
    raise DataError(f"{path} is {what}, not a file.", "Name a file.")


def open_unpacked(path: Path) -> IO[bytes]:
    """The content of a file, unpacked if it is packed. Reading raises a `DataError` if it is damaged or too large."""
    packed = packing(_head(path))
    if packed is None:
        return path.open("rb")
    opener = _OPENERS.get(packed) or _zstandard(path)
    return BufferedReader(_Bounded(path, packed, opener(path)), 1 << 20)


_OPENERS: dict[str, Callable[[Path], Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}


def _zstandard(path: Path) -> Callable[[Path], Any]:
    # In the standard library from Python 3.14 on.
    for module in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(module).open
        except ImportError:
            continue
    raise DataError(
        f"{path} is packed with zstandard, which this Python cannot unpack.",
        "Unpack it (zstd -d FILE), or run: pip install zstandard",
    )


class _Bounded(RawIOBase):
    """An unpacking stream that refuses damage, and content beyond the limit."""

    def __init__(self, path: Path, packed: str, stream: Any) -> None:
        super().__init__()
        self._path, self._packed, self._stream = path, packed, stream
        self._left = self._limit = unpacked_limit()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._refusing_damage():
            block = self._stream.read(len(buffer))
        self._left -= len(block)
        if self._left < 0:
            raise DataError(
                f"{self._path} holds more than {self._limit:,} bytes when it is unpacked.",
                f"Set {UNPACKED} to the bytes that it may have, if you trust it; or unpack it to a file, which is read "
                "without holding it in memory.",
            )
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._stream.close()
        super().close()

    @contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        # Each library has errors of its own for damage; OSError is that of bz2.
        except (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, RuntimeError) as error:
            raise DataError(
                f"{self._path} is a damaged {self._packed} file: {error}.", "Download or compress it again."
            ) from None


def unpacked_limit() -> int:
    """Bytes that a packed file may have when it is unpacked: half of the memory that is free, unless set.

    Raises:
        ConfigError: the variable of the environment is no number of bytes.
    """
    return _limit(UNPACKED) or max(free_memory() // 2, 1 << 20)


def field_limit() -> int:
    """Bytes that a field of a text file may have: 64 MiB, unless set. Raises as `unpacked_limit`."""
    return _limit(FIELD) or _FIELD_BYTES


def _limit(variable: str) -> int | None:
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not 0 < int(text) < 2**63:
        raise ConfigError(f"{variable} is {text!r}, not a number of bytes.", f"For example: {variable}=8000000000")
    return int(text)
