"""Tables in object stores: Parquet is read where it is, other files are copied into the cache first."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rediffuse.addresses import scheme_of
from rediffuse.errors import DataError, RediffuseWarning, closest
from rediffuse.files import sha256_file, writing
from rediffuse.objects import store
from rediffuse.objects.cache import Record, copy_of, locked

# Up to this many objects are looked at one by one; more are listed.
_FEW = 8
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True)
class RemoteFile:
    """A Parquet file in an object store.

    Attributes:
        address: of the object.
        seen: what the store said of it when the table was opened.
    """

    address: str
    seen: store.Object

    def __str__(self) -> str:
        return self.address

    @property
    def parent(self) -> PurePosixPath:
        """The folder, for the names of columns in it."""
        return PurePosixPath(self.address).parent


def expand_address(address: str, what: str, endings: tuple[tuple[str, ...], ...]) -> list[RemoteFile | Path]:
    """The files that an address names: an object, all below a folder, or those that a pattern matches.

    Args:
        address: of the table.
        what: the role of the table, for messages.
        endings: of the files in a folder; the first kind that there is is read.

    Raises:
        DataError: there are none, or the store cannot be read.

    Warns:
        RediffuseWarning: files were copied into the cache.
    """
    found = _found(address, what, endings)
    remote = {one: _is_parquet(one) for one in found}
    if scheme_of(address) != "hf" and all(remote.values()):
        return [RemoteFile(one, there) for one, there in found.items()]
    copies, fetched = [], 0
    for one, there in found.items():
        copy, new = _copy(one, there)
        copies.append(copy)
        fetched += there.size if new else 0
    if fetched:
        warnings.warn(
            f"{address} ({fetched / 2**20:,.1f} MiB) was copied as a whole into {copies[0].parent}"
            + (" and beside. " if len(copies) > 1 else ". ")
            + "Parquet in a bucket is read in pieces, without a copy.",
            RediffuseWarning,
            stacklevel=5,
        )
    return copies


def _found(address: str, what: str, endings: tuple[tuple[str, ...], ...]) -> dict[str, store.Object]:
    if (one := store.look(address)) is not None:
        return {address: one}
    if any(sign in address for sign in "*?["):
        begin = address[: min(address.index(sign) for sign in "*?[" if sign in address)]
        matches = [match for match in store.match(address) if not _is_skipped(match.removeprefix(begin))]
        found = {match: there for match in matches if (there := store.look(match)) is not None}
        if not found:
            raise DataError(f"No object matches {address}.", "Check the pattern and the bucket.")
        return found
    below = store.find(address)
    if "manifest.json" in below and "items.parquet" in below:
        raise DataError(f"{address} is a dataset already.", "Load it with rediffuse.load_dataset.")
    if {"users.parquet", "items.parquet"}.intersection(below) and any(
        name.startswith("interactions/") for name in below
    ):
        raise DataError(
            f"{address} is a folder of numbered tables.", "They are read from a local folder: copy it there."
        )
    if not below:
        parent, _, name = address.rpartition("/")
        near = closest(name, [other for other in store.find(parent) if "/" not in other])
        hint = f" Did you mean {near!r}?" if near else ""
        raise DataError(f"{address} does not exist.", f"Check the address of the {what} table.{hint}")
    kept = {name: there for name, there in below.items() if not _is_skipped(name)}
    for kind in endings:
        if found := {name: there for name, there in kept.items() if name.endswith(tuple(f".{end}" for end in kind))}:
            return {f"{address}/{name}": there for name, there in found.items()}
    raise DataError(
        f"The folder {address} holds no Parquet, CSV or TSV files, and no JSON or Arrow files.",
        f"Name the {what} file itself. Names that begin with _ or . are skipped.",
    )


def _is_skipped(name: str) -> bool:
    return any(part.startswith(("_", ".")) for part in name.split("/"))


def _is_parquet(address: str) -> bool:
    name = address.rpartition("/")[2]
    return name.endswith(_PARQUET) or ("." not in name and store.read_bytes(address, end=4) == b"PAR1")


def _copy(address: str, there: store.Object) -> tuple[Path, bool]:
    """The local copy of an object, and whether it was fetched now."""
    path = copy_of(address, "tables") / address.rpartition("/")[2]
    with locked(address):
        record = Record(address)
        if path.is_file() and record.sha256("", there) == sha256_file(path):
            return path, False
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.fetching")
        try:
            store.get(address, temporary)
            digest = sha256_file(temporary)
            with writing(path):
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        record.add("", digest, there)
        return path, True


def changed(files: list[RemoteFile]) -> str | None:
    """The address of a file that is another object than when the table was opened; None if all are the same."""
    if not files:
        return None
    if len(files) <= _FEW:
        now = {file.address: store.look(file.address) for file in files}
    else:
        first, last = min(files, key=str).address, max(files, key=str).address  # what these share, all do
        same = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
        folder = first[:same].rpartition("/")[0]
        now = {f"{folder}/{name}": there for name, there in store.find(folder).items()}
    return next((file.address for file in files if now.get(file.address) != file.seen), None)
