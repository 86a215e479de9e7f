"""Writing files so that a reader sees the old content or the new, never a half of either."""

from __future__ import annotations

import hashlib
import io
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; after a crash it holds the old content or the new."""
    _atomic(path, lambda temporary: temporary.write_bytes(content))


def atomic_create_bytes(path: Path, content: bytes) -> bool:
    """As `atomic_write_bytes`, unless ``path`` exists; of several processes that try, one gets True."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "tmp")
    try:
        temporary.write_bytes(content)
        sync(temporary)
        try:
            path.hardlink_to(temporary)  # unlike a rename, it fails if somebody was faster
        except FileExistsError:
            return False
        except OSError:  # no such links on this file system
            if path.exists():
                return False
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
    return True


def atomic_write_text(path: Path, content: str) -> None:
    """As `atomic_write_bytes`, in UTF-8 and with line ends as given."""
    atomic_write_bytes(path, content.encode("utf-8"))


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """The content of a Parquet file of ``frame``."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def atomic_write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """As `atomic_write_bytes`, for a frame as Parquet (zstd)."""
    _atomic(path, lambda temporary: frame.write_parquet(temporary, compression="zstd"))


def _atomic(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(path, "tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder to write into; when the block ends well it takes the place of ``folder``.

    An existing ``folder`` stays until the new one is complete and on disk. POSIX has no exchange of two
    folders in one step, so for an instant between two renames the old one is called ``.<name>.old-...``;
    nothing is ever lost.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 ("." has no name to rename; links stay links)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(folder, "tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        old = _sibling(folder, "old")
        if folder.exists():
            folder.rename(old)
        try:
            temporary.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders; there is nothing to wait for then
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sibling(path: Path, kind: str) -> Path:
    # The same folder means the same file system, which is what makes a rename atomic.
    return path.parent / f".{path.name}.{kind}-{secrets.token_hex(4)}"
