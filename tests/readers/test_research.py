"""Folders of released research data become datasets with the split of the paper."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.data import split
from rediffuse.data.dataset import Dataset
from rediffuse.errors import ConfigError, DataError
from rediffuse.readers.research import FORMS, SETS

TRAIN, VALID, TEST = 0, 1, 2


def subset(data: Dataset, number: int) -> dict[Any, list[Any]]:
    """User id -> ids of the items in a subset, in order."""
    rows, given = data.interactions, data.given["given"]
    found: dict[Any, list[Any]] = {}
    for at in np.flatnonzero(given == number):
        found.setdefault(data.user_ids[int(rows.owners[at])], []).append(data.item_ids[int(rows.items[at])])
    return found


def write(folder: Path, **files: Any) -> Path:
    """Files by name, with __ for dots: text, arrays for NumPy's format, and anything else as a pickle."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / name.replace("__", ".")
        if path.suffix == ".npy":
            np.save(path, content, allow_pickle=True)
        elif isinstance(content, str):
            path.write_text(content)
        else:
            path.write_bytes(pickle.dumps(content))
    return folder


DIFFUREC = {"train": {0: [3, 1], 2: [1, 1, 2]}, "val": {0: [2], 2: []}, "test": {0: [4], 2: [1]}, "smap": {9: 1}}


def test_diffurec(tmp_path: Path) -> None:
    data = rd.public_dataset("diffurec", from_folder=write(tmp_path / "beauty", dataset__pkl=DIFFUREC))
    assert subset(data, TRAIN) == {0: [3, 1], 2: [1, 1, 2]}
    assert subset(data, VALID) == {0: [2]}
    assert subset(data, TEST) == {0: [4], 2: [1]}
    assert data.interactions.times is not None
    assert not data.has_timestamps
    assert "diffurec" in data.report["source"]
    assert [data.item_ids[int(i)] for i in data.interactions.row(1)] == [1, 1, 2, 1]


def test_diffrec(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "train_list__npy": np.array([[1, 5], [0, 2], [0, 0], [0, 2]]),
        "valid_list__npy": np.array([[0, 1]], dtype=np.int32),
        "test_list__npy": np.array([[1, 2]]),
        "item_emb__npy": np.arange(12, dtype=np.float32).reshape(6, 2),
    }
    data = rd.public_dataset("diffrec", from_folder=write(tmp_path / "below" / "ml", **arrays).parent)
    assert subset(data, TRAIN) == {0: [2, 0], 1: [5]}
    assert subset(data, VALID) == {0: [1]}
    assert subset(data, TEST) == {1: [2]}
    assert any("1 pairs that a subset repeats" in note and "user 0, item 2" in note for note in data.report["notes"])
    assert data.items is not None
    assert dict(zip(data.items["item_id"], data.items["vector"].to_list(), strict=True)) == {
        item: [2.0 * item, 2.0 * item + 1] for item in (0, 1, 2, 5)
    }
    with pytest.raises(DataError, match=r"test_list\.npy cannot be read as an array: Object arrays"):
        rd.public_dataset("diffrec", from_folder=write(tmp_path / "below", test_list__npy=np.array([[1, None]])))


def test_diffnet(tmp_path: Path) -> None:
    texts = {
        "yelp__train__rating": "0\t3\t1\n0\t1\t1\n2\t1\t1\n",
        "yelp__val__rating": "0\t2\t1\n",
        "yelp__test__rating": "2\t3\t1\n\n",
        "yelp__links": "0\t2\t1\n2\t0\t1\n3\t0\t1\n",
    }
    folder = write(tmp_path, **texts)
    data = rd.public_dataset("diffnet", from_folder=folder)
    assert subset(data, TRAIN) == {0: [3, 1], 2: [1]}
    assert subset(data, VALID) == {0: [2]}
    assert subset(data, TEST) == {2: [3]}
    assert data.social is not None
    links = zip(data.social.source, data.social.target, strict=True)
    assert {(data.user_ids[int(a)], data.user_ids[int(b)]) for a, b in links} == {(0, 2), (2, 0), (3, 0)}
    assert any("user_vector.npy" in note for note in data.report["notes"])
    vectors = {"user_vector__npy": np.ones((4, 3)), "item_vector__npy": np.arange(12.0).reshape(4, 3)}
    data = rd.public_dataset("diffnet", from_folder=write(folder, **vectors))
    assert data.items is not None
    assert data.items["vector"].to_list() == [[3 * item, 3 * item + 1, 3 * item + 2] for item in (1, 2, 3)]
    assert data.users is not None
    assert data.users["vector"].to_list() == [[1.0] * 3] * 3
    assert not any("user_vector.npy" in note for note in data.report["notes"])


KGAT = {"train__txt": "0 2 0\n1 1 1 2\n2\n", "test__txt": "0 1\n1 2\n", "kg_final__txt": "2 0 3\n3 1 4\n0 1 4\n"}


def test_kgat_and_lightgcn(tmp_path: Path) -> None:
    lists = {
        "item_list__txt": "org_id remap_id\nA 0\nB 1\nC 2\n",
        "relation_list__txt": "org_id remap_id\nby 0\nof 1\n",
    }
    folder = write(tmp_path, **KGAT, **lists)
    data, light = (rd.public_dataset(form, from_folder=folder) for form in ("kgat", "lightgcn"))
    assert subset(data, TRAIN) == {0: [2, 0], 1: [1, 2]}
    assert subset(data, TEST) == {0: [1], 1: [2]}
    assert light.interactions_fingerprint == data.interactions_fingerprint
    assert light.kg is None
    assert light.items is not None
    assert light.items["original_item_id"].to_list() == ["A", "B", "C"]
    kg = data.kg
    assert kg is not None
    triples = zip(kg.head, kg.relation, kg.tail, strict=True)
    named = {(kg.entity_ids[int(h)], kg.relation_ids[int(r)], kg.entity_ids[int(t)]) for h, r, t in triples}
    assert named == {(2, "by", 3), (3, "of", 4), (0, "of", 4)}
    assert {(data.item_ids[int(i)], kg.entity_ids[int(e)]) for i, e in kg.item_entity} == {(0, 0), (1, 1), (2, 2)}
    notes = " ".join(data.report["notes"])
    assert "1 pairs are in several subsets" in notes
    assert "user 1, item 2" in notes
    assert "selects its epoch on the test subset" in notes
    with_valid = rd.public_dataset("lightgcn", from_folder=write(folder, valid__txt="0 1\n"))
    assert subset(with_valid, VALID) == {0: [1]}


@pytest.mark.parametrize("form", ["coo_matrix", "csr_matrix"])
def test_diffkg(tmp_path: Path, form: str) -> None:
    train = sparse.coo_matrix(([1.0, 2.0, 1.0], ([0, 0, 1], [2, 0, 1])), shape=(3, 4))
    test = sparse.coo_matrix(([1.0, 0.0], ([1, 2], [3, 3])), shape=(3, 4))  # an entry that is zero
    matrices = {name: matrix.asformat(form[:3]) for name, matrix in (("trnMat__pkl", train), ("tstMat__pkl", test))}
    data = rd.public_dataset("diffkg", from_folder=write(tmp_path, **matrices, kg__txt="0 0 4\n3 1 1\n"))
    assert {user: sorted(items) for user, items in subset(data, TRAIN).items()} == {0: [0, 2], 1: [1]}
    assert subset(data, TEST) == {1: [3]}
    assert data.kg is not None
    assert len(data.kg) == 2
    assert len(data.kg.item_entity) == 4
    write(tmp_path, tstMat__pkl=sparse.coo_matrix((3, 5)))
    with pytest.raises(DataError, match=r"different shapes: \[\(3, 4\), \(3, 5\)\]"):
        rd.public_dataset("diffkg", from_folder=tmp_path)


def test_pdrec(tmp_path: Path) -> None:
    logs: dict[str, Any] = {
        "toy_log_file_final__pkl": {1: [4, 2, 2, 3], 2: [1, 2, 4]},
        "toy_log_timestep_final__pkl": {1: [86400, 86400, 172800, 172800], 2: [0, 86400, 86400]},
        "mix_log_file_final__pkl": {1: [4, 9, 2, 2, 3], 2: [1, 2, 4]},
        "item_index_toy__npy": np.array(["B1", "B2", "B3", "B4"]),
    }
    folder = write(tmp_path, **logs)
    data = rd.public_dataset("pdrec", from_folder=folder)
    assert subset(data, TRAIN) == {1: [4, 2], 2: [1]}
    assert subset(data, VALID) == {1: [2], 2: [2]}
    assert subset(data, TEST) == {1: [3], 2: [4]}
    assert data.has_timestamps
    assert data.interactions.times is not None
    assert data.interactions.times.tolist() == [86400, 86400, 172800, 172800, 0, 86400, 86400]
    assert data.items is not None
    assert data.items["original_item_id"].to_list() == ["B1", "B2", "B3", "B4"]
    assert any("mix_log" in note for note in data.report["notes"])
    write(folder, toy_log_timestep_final__pkl={1: [1, 2], 2: [1, 2, 3]})
    with pytest.raises(DataError, match="do not hold as many entries for each user"):
        rd.public_dataset("pdrec", from_folder=folder)


def test_what_is_missing_or_wrong_is_named(tmp_path: Path) -> None:
    def error(name: str, folder: Path = tmp_path) -> str:
        with pytest.raises(DataError) as caught:
            rd.public_dataset(name, from_folder=folder)
        return str(caught.value)

    assert "holds no file train_list.npy" in error("diffrec")
    (tmp_path / "ml-1m_clean.rar").touch()
    assert "unpack" in error("diffrec")
    assert "is not a folder" in error("diffrec", tmp_path / "nowhere")
    write(tmp_path / "a", dataset__pkl={"train": {}})
    assert "holds ['train'], not train, val and test" in error("diffurec")
    write(tmp_path / "b", dataset__pkl=DIFFUREC)
    assert "holds 2 files dataset.pkl: a" in error("diffurec")
    write(tmp_path / "b", dataset__pkl=DIFFUREC | {"val": {0: ["x"]}})
    assert "'val' does not hold a list of integers for every user" in error("diffurec", tmp_path / "b")
    write(tmp_path / "c", **KGAT | {"kg_final__txt": "0 1 2\n0 x 2\n"})
    assert "kg_final.txt, line 2: '0 x 2' is not a row of 3 integers" in error("kgat", tmp_path / "c")
    write(tmp_path / "c", train__txt="0 1\n\n1 two\n")
    assert "train.txt, line 3, holds an id that is no integer" in error("kgat", tmp_path / "c")
    write(tmp_path / "c", train__txt="0\n1\n")
    assert "holds no pair of user and item" in error("kgat", tmp_path / "c")
    write(tmp_path / "d", trnMat__pkl=[1], tstMat__pkl=[1], kg__txt="0 0 1")
    assert "trnMat.pkl holds a list, not a SciPy matrix" in error("diffkg", tmp_path / "d")
    write(tmp_path / "e", train_list__npy=np.zeros((2, 3)), valid_list__npy=np.zeros(1), test_list__npy=np.zeros(1))
    assert "Expected 2 columns of integers" in error("diffrec", tmp_path / "e")


def test_counts_of_known_sets_are_checked(tmp_path: Path) -> None:
    folder = write(tmp_path, dataset__pkl=DIFFUREC)
    with pytest.raises(DataError, match=r"2 users, 4 items and 8 interactions, and amazon-beauty has 22,363 users"):
        rd.public_dataset("amazon-beauty", from_folder=folder)
    with pytest.raises(ConfigError, match="Did you mean 'diffurec'"):
        rd.public_dataset("difurec", from_folder=folder)
    assert not SETS.keys() & FORMS.keys()
    assert {known.form for known in SETS.values()} <= FORMS.keys()


def test_the_command_line_reads_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIFFUSE_DATA", raising=False)
    folder, run = write(tmp_path / "files", dataset__pkl=DIFFUREC), CliRunner().invoke
    done = run(app, ["data", "diffurec", "--from", str(folder), "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["given_splits"] == ["given"]
    data = rd.load_dataset(tmp_path / "out")
    assert split.default(data).name == "given"
    assert set(FORMS) | set(SETS) == set(json.loads(run(app, ["data", "--json"]).stdout)["from_folder"])
    assert "rediffuse data diffnet-yelp --from FOLDER" in str(run(app, ["data", "diffnet-yelp", "-o", "x"]).exception)
    assert "without the name" in str(run(app, ["data", "--from", str(folder)]).exception)


# --- the prepared sets of the same names, written as their authors released them -----------------------------


def released_again(name: str, root: Path, folder: Path) -> Path:
    """Files of the released form, made from a prepared data set."""
    rows = pl.read_parquet(root / name / "splits.parquet")
    parts = {subset: rows.filter(pl.col("split") == subset) for subset in ("train", "valid", "test")}
    form = SETS[name].form
    if form == "diffurec":
        content = {
            subset.replace("valid", "val"): dict(
                part.group_by("user_id", maintain_order=True).agg("item_id").iter_rows()
            )
            for subset, part in parts.items()
        }
        return write(folder, dataset__pkl=content)
    if form == "diffrec":
        pairs = {f"{s}_list__npy": part.select("user_id", "item_id").to_numpy() for s, part in parts.items()}
        return write(folder, **pairs)
    if form == "diffnet":
        for subset, part in parts.items():
            path = folder / f"yelp.{subset.replace('valid', 'val')}.rating"
            part.select("user_id", "item_id", pl.lit(1)).write_csv(path, include_header=False, separator="\t")
        links = pl.read_parquet(root / name / "social.parquet").select("source", "target", pl.lit(1))
        links.write_csv(folder / "yelp.links", include_header=False, separator="\t")
        return folder
    rows = pl.read_parquet(root / name / "interactions.parquet").group_by("user_id", maintain_order=True)
    items, times = (dict(rows.agg(column).iter_rows()) for column in ("item_id", "timestamp"))
    return write(folder, book_log_file_final__pkl=items, book_log_timestep_final__pkl=times)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["amazon-toys", "diffrec-ml1m-clean", "diffnet-yelp", "pdrec-douban-book"])
def test_released_files_give_the_prepared_set(data_root: Path, tmp_path: Path, name: str) -> None:
    data = rd.public_dataset(name, from_folder=released_again(name, data_root, tmp_path))
    prepared = rd.public_dataset(name, root=data_root)
    assert data.fingerprint == prepared.fingerprint
    assert (data.given["given"] == prepared.given["given"]).all()
