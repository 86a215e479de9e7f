"""Atomic writes: a reader sees the old content of a file or the new one, never a mix.

If the system refuses a write (no space, no permission), the old content stays and a `StorageError` is raised. A killed
process leaves hidden temporary files next to its targets, which `remove_leftovers` removes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from rediffuse import forks
from rediffuse.errors import StorageError

if TYPE_CHECKING:
    import polars as pl


class DigestedFile:
    """A file that is written from its beginning to its end, and the sha256 of what was written.

    Args:
        file: open for writing, at its beginning.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def write(self, content: bytes | memoryview) -> None:
        """Append ``content``."""
        self._sha256.update(content)
        self._file.write(content)

    @property
    def sha256(self) -> str:
        """Hex digest of what was written so far."""
        return self._sha256.hexdigest()


# What a file is to hold: the bytes, or a function that writes them, so that they are never all in memory.
Content: TypeAlias = bytes | Callable[[DigestedFile], object]


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks.

    Raises:
        OSError: it cannot be read, or is no plain file: reading a pipe may wait for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "It is not a file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: dict[str, Any]) -> str:
    """Hex digest of JSON-able content, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``; after a crash the file holds the old content or the new.

    Raises:
        StorageError: the file cannot be written.
    """
    _atomic(path, lambda temporary: temporary.write_bytes(content))


def atomic_write_stream(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write what ``write`` writes into a file, as `atomic_write_bytes` does."""

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write(file)

    _atomic(path, fill)


def atomic_create_bytes(path: Path, content: bytes) -> bool:
    """Create ``path`` as `atomic_write_bytes` does, unless it exists; returns whether this process created it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _sibling(path, "tmp")
        try:
            temporary.write_bytes(content)
            sync(temporary)
            try:
                path.hardlink_to(temporary)  # unlike a rename, this fails if another process was faster
            except FileExistsError:
                return False
            except OSError:  # the file system has no hard links
                if path.exists():
                    return False
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)
    return True


def atomic_write_text(path: Path, content: str) -> None:
    """Write text as `atomic_write_bytes` does, in UTF-8 and with the line ends given."""
    atomic_write_bytes(path, content.encode("utf-8"))


def parquet_bytes(frame: pl.DataFrame, metadata: dict[str, str] | None = None) -> bytes:
    """The content of a Parquet file of ``frame``, with ``metadata`` in its footer."""
    forks.enter()
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata=metadata)
    return buffer.getvalue()


def atomic_write_parquet(path: Path, frame: pl.DataFrame) -> None:
    """Write a frame as Parquet (zstd), as `atomic_write_bytes` does.

    Polars does not write the file itself: its errors on a full disk are of many kinds, and some abort.
    """
    atomic_write_bytes(path, parquet_bytes(frame))


def _atomic(path: Path, write: Callable[[Path], object]) -> None:
    with writing(path):
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


@dataclass(frozen=True)
class Staged:
    """Files under temporary names.

    Attributes:
        folder: where they are.
        digests: sha256 of each, by its final name.
        temporary: its present path, by its final name.
    """

    folder: Path
    digests: dict[str, str]
    temporary: dict[str, Path]

    def put(self, name: str) -> None:
        """Give a file its final name."""
        self.temporary[name].replace(self.folder / name)


@contextmanager
def staged_files(folder: Path, contents: Mapping[str, Content]) -> Iterator[Staged]:
    """Write files under temporary names in ``folder``, then let the caller rename each of them to its final name.

    So a full disk is noticed before any file is replaced.

    Args:
        folder: created if it does not exist.
        contents: content of each file, by its final name.

    Raises:
        StorageError: a file cannot be written.
    """
    staged = Staged(folder, {}, {name: _sibling(folder / name, "tmp") for name in contents})
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with writing(folder / name):
                staged.digests[name] = _write(staged.temporary[name], content)
                sync(staged.temporary[name])
        with writing(folder):
            yield staged
            sync(folder)
    finally:
        with suppress(OSError):  # a disk that cannot be written to does not allow removal either
            for path in staged.temporary.values():
                path.unlink(missing_ok=True)


def _write(path: Path, content: Content) -> str:
    """Write a file; returns its sha256."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()
    with path.open("wb") as file:
        digested = DigestedFile(file)
        content(digested)
    return digested.sha256


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the system while ``path`` is written into a `StorageError`, which says how to fix them.

    Raises:
        StorageError: no space, no permission, or a fault of the disk.
    """
    try:
        yield
    except Exception as error:
        cause = os_error(error)
        if cause is None:
            raise
        raise storage_error(f"{path} cannot be written", cause) from error


def storage_error(problem: str, cause: OSError) -> StorageError:
    """An error with ``problem``, the message of the system, and how to fix it."""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Make space on that disk and run the same command again, a training with --resume."
    elif cause.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Choose a folder that you may write to, or change its permissions."
    else:
        remedy = "Check the folder and its disk, then run the same command again, a training with --resume."
    return StorageError(f"{problem}: {cause.strerror or cause}.", f"{remedy} What was there before is untouched.")


def os_error(error: Exception) -> OSError | None:
    """The OSError behind an error, or None. Polars wraps some of them in its own errors."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return error if isinstance(error, OSError) else None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a new empty folder to write into, which replaces ``folder`` when the block ends without an error.

    An existing ``folder`` stays until the new one is complete and on disk. Linux exchanges the two in one step. On
    other systems, the old one is called ``.<name>.old-...`` for an instant between two renames; nothing is lost. If
    ``folder`` is a link, its target is replaced and the link stays.
    """
    folder = folder.resolve()  # "." has no name that could be renamed
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(folder, "tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        earlier = _replace_folder(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        cause = os_error(error) if isinstance(error, Exception) else None
        if cause is None or cause is error:
            raise
        raise cause from error
    sync(folder.parent)
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)


def _replace_folder(new: Path, folder: Path) -> list[Path]:
    """Rename ``new`` to ``folder``; returns where the folders that it replaced are now.

    If several processes do this, the last one wins.
    """
    if _exchange(new, folder):
        return [new]
    moved: list[Path] = []
    try:
        while True:
            old = _sibling(folder, "old")
            with suppress(FileNotFoundError):
                folder.rename(old)
                moved.append(old)
            try:
                new.rename(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # Another process has renamed its folder in the meantime: try again.
            else:
                return moved
    except BaseException:
        if moved and not folder.exists():
            moved[-1].rename(folder)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders in one step; False if one is missing or the system cannot do it."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return rename(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(other), rename_exchange) == 0


def sync(path: Path) -> None:
    """Wait until a file or the entries of a folder are on disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders, and needs no such wait
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_leftover(path: Path) -> bool:
    """Whether a path is a temporary file or folder, left by a killed process or still being written."""
    return re.fullmatch(r"\..+\.(tmp|old)-[0-9a-f]{8}", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in ``folder`` itself; no other process may be writing there."""
    for path in filter(is_leftover, folder.iterdir() if folder.is_dir() else ()):
        with suppress(OSError):
            path.unlink()


def _sibling(path: Path, kind: str) -> Path:
    # A rename is atomic only within a file system, so the temporary file is in the same folder.
    return path.parent / f".{path.name}.{kind}-{secrets.token_hex(4)}"
