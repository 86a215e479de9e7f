"""Folders in object stores: fetched into a local copy, and written by way of one.

A reader sees a folder whole or not at all: its manifest lists every file with its checksum, is uploaded last, and is
removed before the files of another version come. An object that this machine has copied before, and that has the same
size, tag and checksum still, is copied again neither way: an interrupted upload goes on where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rediffuse.addresses import AddressPath, address_of, refuse_unknown, scheme_of
from rediffuse.arguments import require_path
from rediffuse.errors import ConfigError, DataError, RediffuseError, RunError, StorageError
from rediffuse.files import atomic_write_bytes, is_leftover, sha256_file, writing
from rediffuse.objects import store
from rediffuse.objects.cache import Record, copy_of, locked

MANIFEST = "manifest.json"
_LOCKS = (".lock", ".lock.json")
# How often fetching starts again when the folder is replaced meanwhile.
_TRIES = 3

# From the path and the content of a manifest (None: there is none), the sha256 of each file.
Digests = Callable[[Path, bytes | None], dict[str, str]]


def fetch_folder(address: str, digests: Digests, kind: type[RediffuseError], unlisted: Iterable[str] = ()) -> Path:
    """The local copy of a folder, whose files have the checksums that the manifest lists.

    Args:
        address: of the folder.
        digests: reads the manifest; raises what is wrong with it.
        kind: of the errors.
        unlisted: files to fetch as they are where the manifest does not list them, because an upload was interrupted.

    Raises:
        RediffuseError: of ``kind``, the store cannot be read; a file, which the error names, is missing or damaged.
    """
    folder, path = copy_of(address, "fetched"), AddressPath(address) / MANIFEST
    with locked(address):
        for _ in range(_TRIES):
            content = store.read_bytes(str(path), kind)
            listed = digests(path, content)
            there, record = store.find(address, kind), Record(address)
            problem = None
            for name, digest in listed.items():
                if (folder / name).is_file() and sha256_file(folder / name) == digest:
                    continue
                if name not in there:
                    problem = f"{address}/{name} is missing."
                elif not _fetch(address, name, folder, there[name], record, kind, digest):
                    problem = f"{address}/{name} is damaged: its checksum is not the one in {MANIFEST}."
                if problem:
                    break
            if problem is None:
                for name in there.keys() & set(unlisted) - listed.keys():
                    _fetch(address, name, folder, there[name], record, kind)
                atomic_write_bytes(folder / MANIFEST, content or b"")
                return folder
            if store.read_bytes(str(path), kind) == content:
                raise kind(problem, "Restore the object from a copy, or write the folder again.")
    raise kind(f"{address} was replaced again and again while it was read.", "Read it when no process writes there.")


def _fetch(
    address: str,
    name: str,
    folder: Path,
    there: store.Object,
    record: Record,
    kind: type[RediffuseError],
    digest: str | None = None,
) -> bool:
    """Copy an object into a folder; False if its checksum is not ``digest``."""
    path = folder / name
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.fetching")
    try:
        store.get(f"{address}/{name}", temporary, kind)
        found = sha256_file(temporary)
        if digest is not None and found != digest:
            return False
        with writing(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    record.add(name, found, there)
    return True


@dataclass
class Output:
    """Where files are written: a local folder, or an address by way of a staging folder.

    The staging folder of an address is always the same, so an interrupted work goes on there.

    Attributes:
        folder: the local folder.
        address: where it is uploaded to; None: nowhere.
    """

    folder: Path
    address: str | None = None
    _stale: set[str] = field(default_factory=set)

    @property
    def path(self) -> Path:
        """What to call the place, and to pass on."""
        return self.folder if self.address is None else AddressPath(self.address)

    def start(
        self,
        *,
        resume: bool | None = None,
        replaces: Callable[[bytes], Iterable[str] | None] = lambda manifest: None,
        last: str = MANIFEST,
        kind: type[RediffuseError] = RunError,
    ) -> None:
        """Check what is at the address, and prepare the staging folder. Does nothing for a local folder.

        Args:
            resume: whether to continue the work there; None: work that cannot be continued starts anew.
            replaces: from the manifest of a folder that may be replaced, its files; None: it may not be.
            last: the file that is uploaded last, as its manifest.
            kind: of the error.

        Raises:
            RediffuseError: of ``kind``, there is something else, or nothing to resume.
            StorageError: the store cannot be read.
        """
        if self.address is None:
            return
        with locked(self.address):
            there, record = store.find(self.address, StorageError), Record(self.address)
            others = [name for name, found in there.items() if record.sha256(name, found) is None]
            if resume:
                if not there and not _files(self.folder):
                    raise kind(f"{self.address} holds no training to resume.", "Leave out --resume to start.")
                self._continue(there, others, record)
            elif there and resume is False:
                raise kind(
                    f"{self.address} is not empty: it holds {min(there)}.",
                    "Choose another place, or continue what is there with --resume (Python: resume=True).",
                )
            elif resume is False and _files(self.folder):
                raise kind(
                    f"{self.address} was started on this machine and is not finished.",
                    f"Continue it with --resume (Python: resume=True), or remove {self.folder}.",
                )
            else:
                if last in there:
                    listed = replaces(store.read_bytes(f"{self.address}/{last}", StorageError) or b"")
                    self._stale = set() if listed is None else set(listed)
                    others = sorted(there) if listed is None else sorted(there.keys() - self._stale - {last})
                    for name in self._stale.intersection(there):
                        if record.sha256(name, there[name]) is None:
                            record.add(name, "", there[name])  # ours to replace, also after an interruption
                if others:
                    raise kind(f"{self.address} is not empty: it holds {others[0]}.", "Choose another place.")
                shutil.rmtree(self.folder, ignore_errors=True)

    def join(self, first: str) -> None:
        """Prepare the staging folder of a work that any machine may go on with. Does nothing for a local folder.

        Args:
            first: the file that such a work begins with.

        Raises:
            DataError: there is something else.
        """
        if self.address is None:
            return
        with locked(self.address):
            there, record = store.find(self.address, StorageError), Record(self.address)
            if there and first not in there:
                raise DataError(f"{self.address} is not empty: it holds {min(there)}.", "Choose another place.")
            self._continue(there, [n for n, found in there.items() if record.sha256(n, found) is None], record)

    def _continue(self, there: dict[str, store.Object], others: list[str], record: Record) -> None:
        """Fetch what is there unless this machine has the last state of it."""
        assert self.address is not None
        if not others and (_files(self.folder) or not there):
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        fetched = copy_of(self.address, "fetched")
        if not others and all((fetched / name).is_file() for name in there):
            with writing(self.folder):
                self.folder.parent.mkdir(parents=True, exist_ok=True)
                fetched.replace(self.folder)
            return
        for name, found in there.items():
            if ".." in PurePosixPath(name).parts:
                raise RunError(f"{self.address}/{name} leads out of its folder.", "Remove the object.")
            _fetch(self.address, name, self.folder, found, record, RunError)

    def upload(self, names: Iterable[str]) -> None:
        """Upload files of the staging folder, in this order, unless they are there already.

        Raises:
            StorageError: the store cannot be written; the same call continues.
        """
        if self.address is None:
            return
        with locked(self.address):
            there, record = store.find(self.address, StorageError), Record(self.address)
            for name in names:
                digest, address = sha256_file(self.folder / name), f"{self.address}/{name}"
                if record.sha256(name, there.get(name)) != digest:
                    store.put(self.folder / name, address)
                    record.add(name, digest, store.look(address, StorageError))

    def publish(self, last: str = MANIFEST, meanwhile: bytes | None = None) -> None:
        """Upload the staging folder, the file ``last`` at the end, and keep it as the local copy of the address.

        Args:
            last: the manifest.
            meanwhile: its content while other files change; None: there is none then.

        Raises:
            StorageError: the store cannot be written; the same call continues.
        """
        if self.address is None:
            return
        names = _files(self.folder)
        with locked(self.address):
            there, record = store.find(self.address, StorageError), Record(self.address)
            if last in there and record.sha256(last, there[last]) != sha256_file(self.folder / last):
                if meanwhile is None:
                    store.remove(f"{self.address}/{last}")
                else:
                    store.put_bytes(meanwhile, f"{self.address}/{last}")
        self.upload([*(name for name in names if name != last), last])
        with locked(self.address):
            for name in self._stale.difference(names):
                store.remove(f"{self.address}/{name}")
            fetched = copy_of(self.address, "fetched")
            if self.folder != fetched:
                shutil.rmtree(fetched, ignore_errors=True)
                with writing(fetched):
                    fetched.parent.mkdir(parents=True, exist_ok=True)
                    self.folder.replace(fetched)


def output(name: str, value: Any, remedy: str | None = None) -> Output:
    """The place that an argument names, to write to: a local folder, or one in an object store.

    Raises:
        ConfigError: it is neither, or cannot be written to.
    """
    refuse_unknown(name, value)
    address = address_of(value)
    if address is None:
        return Output(require_path(name, value, remedy))
    if scheme_of(address) == "hf":
        raise ConfigError(
            f"{name} is {address}, and nothing is written to the hub this way.",
            "Write into a local folder; then rediffuse push RUN user/name, or hf upload for other folders.",
        )
    if not address.partition("://")[2].strip("/"):
        raise ConfigError(f"{name} is {address}, which names no bucket.", f"Write {scheme_of(address)}://bucket/folder")
    return Output(copy_of(address, "staged"), address)


def changed(value: Any, folder: Path) -> Output:
    """The place of a folder that was fetched from the address ``value``, if it is one, and changed since."""
    return Output(folder, address_of(value))


def _files(folder: Path) -> list[str]:
    """The files of a folder and those in it, without locks and leftovers, sorted."""
    found = (path for path in folder.rglob("*") if path.is_file() and not is_leftover(path))
    names = (path.relative_to(folder).as_posix() for path in found)
    return sorted(name for name in names if PurePosixPath(name).name not in _LOCKS and not name.endswith(".fetching"))
