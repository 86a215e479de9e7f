"""Writing files so that a reader sees the old content or the new, never a half of either.

What the system refuses (no space, no permission) leaves the old content and becomes a `StorageError`. What a killed
process leaves are hidden siblings, which `remove_leftovers` knows.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediffuse.errors import StorageError

if TYPE_CHECKING:
    import polars as pl


def sha256_file(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: dict[str, Any]) -> str:
    """Hex digest of JSON-able content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``; after a crash it holds the old content or the new."""
    _atomic(path, lambda temporary: temporary.write_bytes(content))


def atomic_create_bytes(path: Path, content: bytes) -> bool:
    """As `atomic_write_bytes`, unless ``path`` exists; of several processes that try, one gets True."""
    with writing(path):
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


@contextmanager
def staged_files(folder: Path, contents: dict[str, bytes]) -> Iterator[Callable[[str], None]]:
    """Write files of ``folder`` beside their places, then let the caller put each in its place, by its name.

    A full disk is met before anything is replaced.

    Raises:
        StorageError: as all writing here.
    """
    temporary = {name: _sibling(folder / name, "tmp") for name in contents}

    def put(name: str) -> None:
        temporary[name].replace(folder / name)

    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            with writing(folder / name):
                temporary[name].write_bytes(content)
                sync(temporary[name])
        with writing(folder):
            yield put
            sync(folder)
    finally:
        with suppress(OSError):  # what could not be written cannot be removed either
            for path in temporary.values():
                path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses while ``path`` is written becomes an error that a user can mend.

    Raises:
        StorageError: no space, no permission, or a fault of the disk.
    """
    try:
        yield
    except Exception as error:
        refused = os_error(error)
        if refused is None:
            raise
        raise storage_error(f"{path} cannot be written", refused) from error


def storage_error(problem: str, refused: OSError) -> StorageError:
    """``problem`` with what the system said of it, and what to do about it."""
    if refused.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "Make space on that disk and do the same again, a training with --resume."
    elif refused.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        remedy = "Choose a folder that you may write to, or change its permissions."
    else:
        remedy = "Check the folder and its disk, then do the same again, a training with --resume."
    return StorageError(f"{problem}: {refused.strerror or refused}.", f"{remedy} What was there before is untouched.")


def os_error(error: Exception) -> OSError | None:
    """The refusal of the system that an error is about; Polars has errors of its own for some."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return OSError(int(found[1]), os.strerror(int(found[1])))
    return error if isinstance(error, OSError) else None


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A new empty folder to write into; when the block ends well it takes the place of ``folder``.

    An existing ``folder`` stays until the new one is complete and on disk. Linux lets the two change places in one
    step. Elsewhere, for an instant between two renames, the old one is called ``.<name>.old-...``; nothing is lost.
    Where ``folder`` is a link, this is done where it leads to, and the link stays.
    """
    folder = folder.resolve()  # also: "." has no name to rename
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = _sibling(folder, "tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        earlier = _take_place(temporary, folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        refused = os_error(error) if isinstance(error, Exception) else None
        if refused is None or refused is error:
            raise
        raise refused from error
    sync(folder.parent)
    for old in earlier:
        shutil.rmtree(old, ignore_errors=True)


def _take_place(new: Path, folder: Path) -> list[Path]:
    """Rename ``new`` to ``folder``; returns where that which stood there is now. Of several processes the last wins."""
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
                # Another process has put its folder there meanwhile.
            else:
                return moved
    except BaseException:
        if moved and not folder.exists():
            moved[-1].rename(folder)
        raise


def _exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step. False where one is missing or the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


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


def is_leftover(path: Path) -> bool:
    """Whether a file or folder was being written by a process that was killed, or is being written now."""
    return re.fullmatch(r"\..+\.(tmp|old)-[0-9a-f]{8}", path.name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove files that processes which are no more were writing, directly in ``folder``; nobody may be writing now."""
    for path in filter(is_leftover, folder.iterdir() if folder.is_dir() else ()):
        with suppress(OSError):
            path.unlink()


def _sibling(path: Path, kind: str) -> Path:
    # The same folder means the same file system, which is what makes a rename atomic.
    return path.parent / f".{path.name}.{kind}-{secrets.token_hex(4)}"
