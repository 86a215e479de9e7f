"""What the processes of one host share: the first of them makes it, all map it, so that the host holds one copy.

Files are mapped from a temporary folder of the host (``TMPDIR``), whose names are gone once all processes have mapped
them; the system frees the content when the last process ends, however it ends.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rediffuse import distributed
from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.subsets import Split, Task, TrainingView
from rediffuse.files import writing

_NAMES = "names.json"


def shared_split(dataset: Dataset, make: Callable[[Dataset], Split]) -> Split:
    """``make(dataset)``, which is called in one process of each host. Collective.

    Raises:
        RediffuseError: as ``make``.
        StorageError: the temporary folder cannot be written.
    """
    if distributed.world_size() == 1:
        return make(dataset)

    def write(folder: Path) -> None:
        split = make(dataset)
        described = {name: getattr(split, name) for name in ("name", "params", "leak", "note", "targets")}
        _write(folder, {"subset": split.subset}, described)

    with _made_once(write) as folder:
        arrays, described = _read(folder)
        return Split(dataset, subset=arrays["subset"], **described)


def shared_json(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """``make()``, of JSON, which is called in one process of each host. Collective. Raises as `shared_split`."""
    if distributed.world_size() == 1:
        return make()
    with _made_once(lambda folder: _write(folder, {}, make())) as folder:
        return _read(folder)[1]


def shared_view(split: Split) -> TrainingView:
    """The training view of ``split``, with arrays that the processes of a host share. Collective.

    Raises:
        StorageError: the temporary folder cannot be written.
    """
    if distributed.world_size() == 1:
        return split.training_view()

    def write(folder: Path) -> None:
        files: dict[int, str] = {}

        def place(train: Histories) -> Histories:  # of the copies, only one is in memory at a time
            names = _write(folder, _arrays_of("train", train), {})
            arrays, _ = _read(folder)
            files.update({id(arrays[name]): file for name, file in names.items()})
            return _histories_of("train", arrays)

        view = split.training_view(place)
        rows = {"train": view.train, "histories": view.valid.histories, "truth": view.valid.truth}
        if view.valid.seen is not None:
            rows["seen"] = view.valid.seen
        arrays = {"users": view.valid.users, "popularity": view.valid.popularity}
        for prefix, histories in rows.items():
            arrays |= _arrays_of(prefix, histories)
        _write(folder, arrays, {}, files)

    with _made_once(write) as folder:
        arrays, _ = _read(folder)
        seen = _histories_of("seen", arrays) if "seen.items" in arrays else None
        histories, truth = (_histories_of(prefix, arrays) for prefix in ("histories", "truth"))
        valid = Task("valid", arrays["users"], histories, truth, arrays["popularity"], seen)
        return split.view_of(_histories_of("train", arrays), valid)


def _arrays_of(prefix: str, histories: Histories) -> dict[str, NDArray[Any]]:
    arrays = {f"{prefix}.{field.name}": getattr(histories, field.name) for field in fields(Histories)}
    return {name: array for name, array in arrays.items() if array is not None}


def _histories_of(prefix: str, arrays: dict[str, NDArray[Any]]) -> Histories:
    return Histories(*(arrays.get(f"{prefix}.{field.name}") for field in fields(Histories)))  # pyright: ignore[reportArgumentType]


@contextmanager
def _made_once(write: Callable[[Path], object]) -> Iterator[Path]:
    """A folder that the first process of each host fills; it is removed when all have read it. Collective."""
    made: list[Path] = []

    def make() -> Path:
        with writing(Path(tempfile.gettempdir())):
            made.append(Path(tempfile.mkdtemp(prefix="rediffuse-")))
        write(made[0])
        return made[0]

    try:
        with distributed.fail_together("Start the same command again."):
            found = distributed.first_of_host(make)
        yield found
        with distributed.fail_together("Start the same command again."):
            distributed.any_rank(False)  # all have mapped it
    finally:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def _write(
    folder: Path, arrays: dict[str, NDArray[Any]], described: dict[str, Any], written: dict[int, str] | None = None
) -> dict[str, str]:
    """Write arrays, each once, and what is not an array.

    Args:
        written: id of an array -> its file, of those that are written already.

    Returns:
        The file of each array.
    """
    files = dict(written or {})
    with writing(folder):
        for array in arrays.values():
            if id(array) not in files:
                files[id(array)] = f"{len(files)}.npy"
                np.save(folder / files[id(array)], array, allow_pickle=False)
        names = {name: files[id(array)] for name, array in arrays.items()}
        (folder / _NAMES).write_text(json.dumps([names, described]), encoding="utf-8")
    return names


def _read(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    names, described = json.loads((folder / _NAMES).read_text(encoding="utf-8"))
    # Copied on writing: torch warns of arrays that may not be written to. Nothing writes, so pages stay shared.
    mapped = {
        file: np.asarray(np.load(folder / file, mmap_mode="c", allow_pickle=False)) for file in set(names.values())
    }
    return {name: mapped[file] for name, file in names.items()}, described
