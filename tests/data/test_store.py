"""Saving and loading: nothing is lost, nothing foreign is overwritten, nothing damaged is read."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rediffuse import files
from rediffuse.data import loading, split, store
from rediffuse.data.dataset import Dataset
from rediffuse.data.loading import load_dataset
from rediffuse.errors import DataError, StorageError
from rediffuse.readers.interactions import read_interactions


@pytest.fixture
def dataset() -> Dataset:
    rows = [("b", 20, 3.0, 1.5), ("a", 10, 4.0, 2.0), ("a", 20, 5.0, 1.0), ("a", 30, 1.0, 9.25)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "time"], orient="row")
    subsets = pl.DataFrame({"user_id": ["a", "a", "b"], "item_id": [10, 30, 20], "split": ["train", "test", "train"]})
    return read_interactions(
        frame,
        time="time",
        rating="rating",
        items=pl.DataFrame({"item_id": [30, 10], "title": ["dreißig", "zehn"]}),
        users=pl.DataFrame({"user_id": ["a"], "age": [7]}),
        social=pl.DataFrame({"source": ["a", "c"], "target": ["b", "a"]}),
        kg=pl.DataFrame({"head": ["e", "f"], "relation": [1, 2], "tail": ["f", "g"]}),
        item_entity=pl.DataFrame({"item_id": [10], "entity_id": ["e"]}),
        splits=pl.concat([subsets.with_columns(scheme=pl.lit(s)) for s in ("one/two", "три")]),
    )


def test_roundtrip(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.save(tmp_path / "d") == tmp_path / "d"
    again = load_dataset(tmp_path / "d")
    assert again.fingerprint == dataset.fingerprint
    del again.__dict__["fingerprint"], again.__dict__["interactions_fingerprint"]
    assert again.fingerprint == dataset.fingerprint, "the stored fingerprint is that of the content"
    assert again.items is not None
    assert again.users is not None
    assert again.items.equals(dataset.items)  # pyright: ignore[reportArgumentType]
    assert again.users.equals(dataset.users)  # pyright: ignore[reportArgumentType]
    assert (again.title, again.has_timestamps) == ("title", True)
    assert again.report == dataset.report
    assert {name: subset.tolist() for name, subset in again.given.items()} == {
        name: subset.tolist() for name, subset in dataset.given.items()
    }
    assert again.num_users == 3
    assert len(again.interactions) == 3


def mapped(array: np.ndarray) -> bool:
    """Whether it lies in a file."""
    return isinstance(array, np.memmap) or (array.base is not None and mapped(array.base))


def test_interactions_are_mapped_into_memory(dataset: Dataset, tmp_path: Path) -> None:
    again = load_dataset(dataset.save(tmp_path / "d"))
    interactions = again.interactions
    for array, was in (
        (interactions.offsets, dataset.interactions.offsets),
        (interactions.items, dataset.interactions.items),
        (interactions.times, dataset.interactions.times),
        (interactions.ratings, dataset.interactions.ratings),
        *((again.given[scheme], subset) for scheme, subset in dataset.given.items()),
    ):
        assert array is not None
        assert was is not None
        assert mapped(array)
        assert type(array) is np.ndarray
        assert not array.flags.writeable
        assert (array.dtype, array.tolist()) == (was.dtype, was.tolist())
    assert interactions.synthetic is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not rename a folder with files that are mapped")
def test_a_loaded_dataset_outlives_its_folder(dataset: Dataset, tmp_path: Path) -> None:
    again = load_dataset(dataset.save(tmp_path / "d"))
    read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6]})).save(tmp_path / "d")
    assert again.interactions.items.tolist() == dataset.interactions.items.tolist()
    again.save(tmp_path / "d")
    assert load_dataset(again.save(tmp_path / "d")).fingerprint == dataset.fingerprint


def swaps(monkeypatch: pytest.MonkeyPatch, place: object, name: str, others: list[Dataset], folder: Path) -> None:
    """Before each call of a function, the next of the datasets takes the folder's place."""
    real = getattr(place, name)

    def swapped(*arguments: object, **options: object) -> object:
        if others:
            others.pop(0).save(folder)
        return real(*arguments, **options)

    monkeypatch.setattr(place, name, swapped)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not rename a folder with files that are mapped")
@pytest.mark.parametrize(
    ("place", "name"), [(loading, "verify_file"), (np, "load"), (pl, "read_parquet"), (loading, "Histories")]
)
def test_a_dataset_that_is_replaced_while_it_is_loaded_is_not_mixed_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: object, name: str
) -> None:
    """Both have as many users, items and interactions, so that a mixture would be valid."""
    one, other = (
        read_interactions(pl.DataFrame({"user_id": users, "item_id": ["a", "b", "b"]}))
        for users in (["u", "v", "w"], ["v", "w", "x"])
    )
    one.save(tmp_path / "d")
    swaps(monkeypatch, place, name, [other], tmp_path / "d")
    again = load_dataset(tmp_path / "d")
    monkeypatch.undo()
    assert again.user_ids.to_list() == ["v", "w", "x"]
    assert again.fingerprint == other.fingerprint
    del again.__dict__["fingerprint"]
    assert again.fingerprint == other.fingerprint


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not rename a folder with files that are mapped")
def test_a_dataset_that_is_replaced_all_the_time_is_an_error(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6]}))
    dataset.save(tmp_path / "d")
    swaps(monkeypatch, loading, "_load", [other, dataset] * 20, tmp_path / "d")
    with pytest.raises(DataError, match=r"d was replaced again and again"):
        load_dataset(tmp_path / "d")


def test_saving_to_a_link_replaces_what_it_leads_to(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / "d"
    link.symlink_to(Path("..") / "disk" / "d")
    other = read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6]}))
    for data in (dataset, other):  # what the link leads to is made, then replaced
        assert data.save(link) == link
        assert link.is_symlink()
        assert load_dataset(tmp_path / "disk" / "d").fingerprint == load_dataset(link).fingerprint == data.fingerprint
        assert list((tmp_path / "here").iterdir()) == [link]
        assert list((tmp_path / "disk").iterdir()) == [tmp_path / "disk" / "d"]


def test_roundtrip_of_the_bare_minimum(tmp_path: Path) -> None:
    data = read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6]}))
    data.save(tmp_path / "new" / "d")
    again = load_dataset(str(tmp_path / "new" / "d"))
    assert again.fingerprint == data.fingerprint
    assert (again.items, again.users, again.social, again.kg, again.interactions.times) == (None,) * 5
    assert again.given == {}


def test_nothing_is_pickled(dataset: Dataset, tmp_path: Path) -> None:
    dataset.save(tmp_path / "d")
    assert {file.suffix for file in (tmp_path / "d").iterdir()} == {".parquet", ".npy", ".json"}
    assert list(tmp_path.iterdir()) == [tmp_path / "d"], "no temporary files are left"


@pytest.mark.parametrize("damage", ["change", "cut", "remove"])
def test_damage_is_refused_by_name(dataset: Dataset, tmp_path: Path, damage: str) -> None:
    for name in (*dataset._frames(), *dataset._arrays()):
        dataset.save(tmp_path / "d")
        path = tmp_path / "d" / name
        content = bytearray(path.read_bytes())
        if damage == "change":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        with pytest.raises(DataError, match=name) as caught:
            load_dataset(tmp_path / "d")
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"has_timestamps": False}, "manifest.json was changed"),
        (
            lambda m: m | {"version": 99},
            "manifest.json has format version 99; this Rediffuse reads version 3",
        ),
        (lambda m: m | {"version": 2}, "manifest.json has format version 2; this Rediffuse reads version 3"),
        (lambda m: m | {"format": "other"}, "is not the manifest of a dataset"),
        (lambda m: {k: v for k, v in m.items() if k != "sha256"}, "manifest.json was changed"),
    ],
)
def test_changed_manifest(dataset: Dataset, tmp_path: Path, change: object, message: str) -> None:
    path = dataset.save(tmp_path / "d") / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))  # pyright: ignore[reportCallIssue]
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "d")


def test_unreadable_or_missing_manifest(dataset: Dataset, tmp_path: Path) -> None:
    path = dataset.save(tmp_path / "d") / "manifest.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        load_dataset(tmp_path / "d")
    with pytest.raises(DataError, match="holds no dataset"):
        load_dataset(tmp_path / "nothing")


def test_foreign_folders_are_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    for place in ("mine", "mine/thesis.txt"):
        with pytest.raises(DataError, match="is not a dataset written by Rediffuse"):
            dataset.save(tmp_path / place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"
    (tmp_path / "empty").mkdir()
    dataset.save(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"not part of the dataset: notes\.txt"):
        dataset.save(tmp_path / "empty")


def test_the_current_folder_can_be_replaced(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.save(tmp_path / "d")
    monkeypatch.chdir(tmp_path / "d")
    dataset.save(".")
    assert load_dataset(tmp_path / "d").fingerprint == dataset.fingerprint


def test_an_old_dataset_stays_until_the_new_one_is_complete(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset.save(tmp_path / "d")
    other = read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6]}))

    def broken(path: Path) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(store, "sha256_file", broken)
    with pytest.raises(DataError, match=r"(?s)d cannot be written: disk full.*untouched"):
        other.save(tmp_path / "d")
    monkeypatch.undo()
    assert load_dataset(tmp_path / "d").fingerprint == dataset.fingerprint
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]
    other.save(tmp_path / "d")
    assert load_dataset(tmp_path / "d").fingerprint == other.fingerprint
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


def test_folders_are_replaced_where_the_system_cannot_exchange_them(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    other = read_interactions(pl.DataFrame({"user_id": [1, 2], "item_id": [5, 6]}))
    dataset.save(tmp_path / "d")
    other.save(tmp_path / "d")
    assert load_dataset(tmp_path / "d").fingerprint == other.fingerprint
    assert list(tmp_path.iterdir()) == [tmp_path / "d"]


def test_a_folder_that_another_process_puts_there_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "d", Path.rename

    def meanwhile(self: Path, target: Path) -> Path:
        if target == folder and not folder.exists() and not list(tmp_path.glob(".d.old-*")):
            folder.mkdir()
            (folder / "theirs").touch()
        return rename(self, target)

    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", meanwhile)
    with files.atomic_folder(folder) as new:
        (new / "ours").touch()
    assert [path.name for path in folder.iterdir()] == ["ours"]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_split_is_the_same_after_loading(dataset: Dataset, tmp_path: Path) -> None:
    again = load_dataset(dataset.save(tmp_path / "d"))
    assert split.leave_one_out(again).fingerprint == split.leave_one_out(dataset).fingerprint


def test_fingerprints_tell_ids_apart() -> None:
    def data(*items: object) -> Dataset:
        return read_interactions(pl.DataFrame({"user_id": [1] * len(items), "item_id": items}))

    prints = [data(*items).fingerprint for items in ((1, 2), ("1", "2"), ("a", "bc"), ("ab", "c"), (2, 1))]
    assert len(set(prints)) == 5


# --- files --------------------------------------------------------------------------------------------------


def test_atomic_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    files.atomic_write_text(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    files.atomic_write_bytes(path, b"x")
    assert files.sha256_file(path) == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    files.atomic_write_parquet(tmp_path / "a.parquet", pl.DataFrame({"a": [1]}))
    assert pl.read_parquet(tmp_path / "a.parquet").rows() == [(1,)]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    files.atomic_write_text(path, "old")

    def broken(path: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files, "sync", broken)
    with pytest.raises(StorageError, match=r"(?s)a\.txt cannot be written: disk full.*untouched"):
        files.atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
