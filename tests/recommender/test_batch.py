"""Batch inference: each user once and in order, whatever fails."""

from __future__ import annotations

import gzip
import json
import threading
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from tests.dying import dies

import rediffuse as rd
from rediffuse import files
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, StorageError
from rediffuse.recommender import batch
from rediffuse.recommender.batch import recommend_to_folder
from rediffuse.recommender.user_files import UserFile
from rediffuse.testing import synthetic_interactions

USERS, SIZE = 50, 8  # seven part files, the last with two users
KNOWN = [f"u{7 * n % 60}" for n in range(USERS)]


def small_run(folder: Path) -> Path:
    split = rd.split.leave_one_out(synthetic_interactions())
    options = {"embedding_size": 16, "epochs": 1, "blocks": 1, "batch_size": 64}
    return rd.train("diffurec", split, folder / "run", config=options).path


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def recommender(run):
    return rd.Recommender.load(run)


@pytest.fixture
def users(tmp_path) -> Path:
    pl.DataFrame({"user_id": KNOWN}).write_parquet(tmp_path / "users.parquet", row_group_size=5)
    return tmp_path / "users.parquet"


def no_user(user: str) -> bool:
    return False


def read(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(sorted(folder.glob("part-*.parquet")))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_lists(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    """Equal, except for the last digits of scores, which differ if users are scored in other batches."""
    assert_frame_equal(
        found.drop("score", "uncertainty", strict=False), wanted.drop("score", "uncertainty", strict=False)
    )
    for name in {"score", "uncertainty"} & set(found.columns):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4)


def test_the_part_files_hold_what_recommend_returns(recommender, users, tmp_path):
    result = recommend_to_folder(recommender, users, tmp_path / "out", k=4, seed=3, samples=2, rows_per_part=SIZE)
    wanted = recommender.recommend(users=KNOWN, k=4, seed=3, samples=2)
    same_lists(read(tmp_path / "out"), wanted)
    assert {"uncertainty", "title"} <= set(wanted.columns)
    assert (result.parts, result.written, result.skipped, result.missing) == (7, 7, 0, 0)
    assert result.counts["users"] == USERS
    assert result.counts["rows"] == len(wanted) == 4 * USERS
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [part["users"] for part in manifest["parts"].values()] == [8] * 6 + [2]
    for name, part in manifest["parts"].items():
        assert part["sha256"] == files.sha256_file(tmp_path / "out" / name)
        assert part["rows"] == len(pl.read_parquet(tmp_path / "out" / name))


def test_histories_as_lists_and_as_text(recommender, tmp_path):
    histories = [["i1", "i2", "i3"], [], ["i7", "no such item"], ["i5"], None]
    labels = ["a", "b", "u1", "d", "e"]
    users = pl.DataFrame({"user_id": labels, "history": histories})
    users.write_parquet(tmp_path / "lists.parquet")
    users.with_columns(pl.col("history").list.join(" | ")).write_csv(tmp_path / "text.csv")
    with pytest.warns(RediffuseWarning):
        wanted = recommender.recommend(users=labels, histories=[row or [] for row in histories], exclude=["i4"])
    for name in ("lists.parquet", "text.csv"):
        with pytest.warns(RediffuseWarning) as caught:
            recommend_to_folder(recommender, tmp_path / name, tmp_path / f"{name}.out", rows_per_part=2, exclude=["i4"])
        assert [str(one.message) for one in caught] == [
            "1 items in the histories are not in the catalogue; they are skipped.",
            "2 of 5 histories are empty; they get popular items.",
        ]
        same_lists(read(tmp_path / f"{name}.out"), wanted)


def test_unknown_users_are_counted_over_all_part_files_and_keep_their_ids(tmp_path):
    """The ids of one part file are integers, those of another are not: the column has one type in both."""
    split = rd.split.leave_one_out(synthetic_interactions(text_ids=False))
    recommender = rd.Recommender.load(rd.train("popularity", split, tmp_path / "run").path)
    ids = ["3", "4", "999", "none", "007", "5"]
    pl.DataFrame({"user_id": ids}).write_csv(tmp_path / "users.csv")
    with pytest.warns(RediffuseWarning, match="3 of 6 users are unknown") as caught:
        recommend_to_folder(recommender, tmp_path / "users.csv", tmp_path / "out", k=2, rows_per_part=2)
    assert len(caught) == 1
    assert read(tmp_path / "out")["user_id"].unique(maintain_order=True).to_list() == ids
    with pytest.warns(RediffuseWarning):
        same_lists(read(tmp_path / "out"), recommender.recommend(users=ids, k=2))
    pl.DataFrame({"user_id": ["3", "4", "5"]}).write_csv(tmp_path / "all_known.csv")
    recommend_to_folder(recommender, tmp_path / "all_known.csv", tmp_path / "known", k=2, rows_per_part=2)
    assert read(tmp_path / "known")["user_id"].dtype == pl.Int64


@pytest.mark.parametrize("size", [1, 3, 50, 1000])
@pytest.mark.parametrize("kind", ["parquet", "folder", "csv", "csv.gz"])
def test_blocks_are_the_rows_of_the_file_in_order(tmp_path, kind, size):
    ids = [f"u{n}" for n in range(50)]
    frame = pl.DataFrame({"other": range(50), "user_id": ids})
    path = tmp_path / ("folder" if kind == "folder" else f"users.{kind}")
    if kind == "parquet":
        frame.write_parquet(path, row_group_size=7)
    elif kind == "folder":
        path.mkdir()
        frame[:20].write_parquet(path / "a.parquet")
        frame[20:].write_parquet(path / "b.parquet")
    else:
        text = frame.write_csv().encode()
        path.write_bytes(gzip.compress(text) if kind == "csv.gz" else text)
    blocks = dict(UserFile(path, no_user).blocks(size))
    assert list(blocks) == list(range(-(-50 // size)))
    assert pl.concat(blocks.values())["user_id"].to_list() == ids
    odd = [number for number, _ in UserFile(path, no_user).blocks(size, wanted=lambda block: block % 2 == 1)]
    assert odd == [number for number in blocks if number % 2 == 1]


def test_a_file_without_users_gives_a_finished_folder(recommender, tmp_path):
    (tmp_path / "users.csv").write_text("user_id\n")
    result = recommend_to_folder(recommender, tmp_path / "users.csv", tmp_path / "out")
    assert (result.parts, result.missing, result.finished_here) == (0, 0, True)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["users"] == 0


# --- killed, damaged, repeated -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "count"),
    [
        *(("write", 0), ("link", 0), ("lists", 0), ("lists", 3), ("write", 4)),
        *(("rename", 0), ("rename", 5), ("rename", 6), ("link", 1)),
    ],
)
def test_the_same_command_continues_after_a_kill(recommender, users, tmp_path, place, count):
    recommend_to_folder(recommender, users, tmp_path / "alone", k=4, rows_per_part=SIZE)
    dies(place, count, recommend_to_folder, recommender, users, tmp_path / "out", k=4, rows_per_part=SIZE)
    assert not (tmp_path / "out/manifest.json").exists()
    result = recommend_to_folder(recommender, users, tmp_path / "out", k=4, rows_per_part=SIZE)
    assert result.written + result.skipped == 7
    assert result.finished_here
    found, wanted = contents(tmp_path / "out"), contents(tmp_path / "alone")
    # A kill leaves at most hidden temporary copies of two small files.
    assert {name: bytes_ for name, bytes_ in found.items() if not name.startswith((".request", ".manifest"))} == wanted


def test_a_finished_folder_is_not_written_to(recommender, users, tmp_path, monkeypatch):
    recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    result = recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)
    assert (result.written, result.skipped, result.missing, result.finished_here) == (0, 7, 0, False)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone", "no record", "half a record", "no manifest"])
def test_damaged_part_files_are_written_again(recommender, users, tmp_path, damage):
    out = tmp_path / "out"
    recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    before = contents(out)
    part, record = out / "part-00003.parquet", out / "done/part-00003.json"
    content = part.read_bytes()
    if damage == "truncated":
        part.write_bytes(content[:-9])
    elif damage == "flipped":
        part.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
    elif damage == "half a record":
        record.write_bytes(record.read_bytes()[:20])
    else:
        {"gone": part, "no record": record, "no manifest": out / "manifest.json"}[damage].unlink()
    result = recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    assert result.written == (0 if damage == "no manifest" else 1)
    assert result.finished_here
    assert contents(out) == before


@pytest.mark.parametrize("value", [None, "8", [8]])
@pytest.mark.parametrize("field", ["bytes", "users", "sha256"])
def test_a_completion_record_with_wrong_types_does_not_count(recommender, users, tmp_path, field, value):
    out = tmp_path / "out"
    recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    before = contents(out)
    record = out / "done/part-00003.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {field: value}))
    assert recommend_to_folder(recommender, users, out, rows_per_part=SIZE).written == 1
    assert contents(out) == before


def test_a_part_file_damaged_meanwhile_is_written_again_before_the_folder_is_finished(recommender, users, tmp_path):
    recommend_to_folder(recommender, users, tmp_path / "alone", rows_per_part=SIZE)
    damaged = tmp_path / "out/part-00002.parquet"
    once = iter([True])

    def damage(done: int, total: int) -> None:
        if done == total and next(once, False):
            content = damaged.read_bytes()
            damaged.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])

    result = recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE, on_progress=damage)
    assert (result.missing, result.finished_here) == (0, True)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_part_file_that_is_damaged_twice_is_missing(recommender, users, tmp_path, monkeypatch):
    real = batch.atomic_write_bytes

    def damage(path: Path, content: bytes) -> None:
        real(path, content[:-1] if path.name == "part-00002.parquet" else content)

    monkeypatch.setattr(batch, "atomic_write_bytes", damage)
    result = recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)
    assert (result.missing, result.finished_here) == (1, False)
    assert not (tmp_path / "out/manifest.json").exists()
    monkeypatch.undo()
    assert recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE).finished_here


def test_another_request_is_refused_with_the_difference(recommender, users, tmp_path):
    out = tmp_path / "out"
    recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    before = contents(out)
    for options, said in [
        ({"k": 3, "seed": 1}, "k was 10, is 3; seed was 0, is 1"),
        ({"exclude": ["i3"]}, r"exclude was \[\], is \['i3'\]"),
        ({"filter_seen": False}, "filter_seen was True, is False"),
        ({"samples": 2}, "samples was 1, is 2"),
        ({"rows_per_part": 9}, "rows_per_part was 8, is 9"),
    ]:
        with pytest.raises(ConfigError, match=said):
            recommend_to_folder(recommender, users, out, **({"rows_per_part": SIZE} | options))
    moved = users.rename(tmp_path / "moved.parquet")
    assert recommend_to_folder(recommender, moved, out, rows_per_part=SIZE).written == 0
    pl.DataFrame({"user_id": KNOWN[::-1]}).write_parquet(users)
    with pytest.raises(ConfigError, match=r"the content of the user file .*users\.parquet differs"):
        recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    other = rd.train("popularity", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "other").path
    with pytest.raises(ConfigError, match="the run is another one"):
        recommend_to_folder(rd.Recommender.load(other), moved, out, rows_per_part=SIZE)
    assert contents(out) == before


def test_evaluating_a_run_does_not_change_its_fingerprint(run, recommender, tmp_path):
    copy = tmp_path / "copy"
    files.shutil.copytree(run, copy)
    from rediffuse.runs.run_folder import add_files

    add_files(copy, {"test.json": b"{}"})
    assert rd.Recommender.load(copy).fingerprint == recommender.fingerprint


def test_foreign_folders_and_damaged_requests_are_refused(recommender, users, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"'thesis\.tex', which does not belong"):
        recommend_to_folder(recommender, users, out)
    (out / "thesis.tex").rename(out / ".hidden")
    recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    (out / "part-00007.parquet").touch()
    with pytest.raises(DataError, match="part-00007"):
        recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    (out / "part-00007.parquet").unlink()
    request = json.loads((out / "request.json").read_text())
    for content, said in [
        ("{", "damaged"),
        ("[]", "is not a request"),
        (json.dumps(request | {"version": 1}), "has version 1; this version of Rediffuse reads version 5"),
        (json.dumps(request | {"format": "x"}), "is not a request"),
        *(
            (json.dumps(request | {name: other}), r"request\.json was changed after it was written")
            for name in ("run", "input", "options", "rows", "user_id", "sha256")
            for other in (None, 3, [], {}, {"sha256": request["run"]["sha256"]})
        ),
        (json.dumps({"format": request["format"], "version": 5}), "was changed"),
    ]:
        (out / "request.json").write_text(content)
        with pytest.raises(DataError, match=said):
            recommend_to_folder(recommender, users, out, rows_per_part=SIZE)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        recommend_to_folder(recommender, users, tmp_path / "file")


def test_a_full_disk_is_an_error_and_keeps_finished_part_files(recommender, users, tmp_path, monkeypatch):
    real, left = Path.write_bytes, [6]

    def fill(path: Path, content: bytes) -> int:
        left[0] -= 1
        if left[0] < 0:
            real(path, content[: len(content) // 2])
            raise OSError(28, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(StorageError, match=r"part-00002\.json cannot be written: No space left"):
        recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)
    monkeypatch.undo()
    result = recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)
    assert (result.written, result.skipped) == (5, 2)
    recommend_to_folder(recommender, users, tmp_path / "alone", rows_per_part=SIZE)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_files_that_are_not_user_files_are_refused(recommender, tmp_path):
    (tmp_path / "only.csv").write_text("history\na|b\n")
    (tmp_path / "long.csv").write_text("user_id,x\nu1,1\nu2,1,2\n")
    (tmp_path / "latin.csv").write_bytes("user_id\nu1\nJos\xe9\n".encode("latin-1"))
    # The header is longer than what the reader examines to find the separator.
    (tmp_path / "wide.csv").write_bytes(b"user_id," + b"x" * 70_000 + b"\xe9\nu1,1\n")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    users = pl.DataFrame({"user_id": [f"u{n * n}" for n in range(20_000)]}).write_csv().encode()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(users)[:-30])
    for name, said in {
        "nowhere.parquet": "does not exist",
        "only.csv": "no column user_id",
        "long.csv": "line 3 has 3 fields and the header has 2",
        "latin.csv": "not UTF-8",
        "wide.csv": r"wide\.csv is not UTF-8",
        "cut.parquet": "cannot be read as Parquet",
        "cut.csv.gz": "damaged gzip file",
    }.items():
        with pytest.raises(DataError, match=said):
            recommend_to_folder(recommender, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("u1\nu2\n", r"first line of .*users\.csv is 'u1', which is not a header"),
        ("17\n18\n", r"first line of .*users\.csv is '17', which is not a header"),
        ("u1,i1|i2\nu2,i3\n", "no column user_id; its columns are 'u1', 'i1|i2'"),
        ("age,name\n17,u1\n18,u2\n", "no column user_id; its columns are 'age', 'name'"),
        ("name,history\nu1,i1\n", "no column user_id; its columns are 'name', 'history'"),
    ],
)
def test_files_without_a_header_are_refused(recommender, tmp_path, text, said):
    (tmp_path / "users.csv").write_text(text)
    with pytest.raises(DataError, match=said.replace("|", r"\|")) as caught:
        recommend_to_folder(recommender, tmp_path / "users.csv", tmp_path / "out")
    assert "a header that names them" in str(caught.value)


def test_a_table_of_interactions_is_no_user_file(recommender, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"user_id,item_id\n{KNOWN[0]},1\n{KNOWN[0]},2\n")
    with pytest.warns(RediffuseWarning, match="'item_id' of .* is not used: each row is one user"):
        UserFile(path, recommender.is_known_user)


def test_a_single_column_may_have_any_name(recommender, tmp_path):
    (tmp_path / "users.csv").write_text("name\nu1\nu2\n")
    recommend_to_folder(recommender, tmp_path / "users.csv", tmp_path / "out", k=1)
    assert read(tmp_path / "out")["user_id"].to_list() == ["u1", "u2"]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("bad", "said"), [(None, "is empty"), ("", "is"), ("  ", "is blank: '  '"), (" u3", "is ' u3', with spaces")]
)
def test_missing_blank_and_padded_ids_are_refused_with_their_line(recommender, tmp_path, kind, bad, said):
    users = pl.DataFrame({"user_id": [*KNOWN[:20], bad, "u4"], "history": ["i1"] * 22})
    path = tmp_path / f"users.{kind}"
    users.write_parquet(path) if kind == "parquet" else users.write_csv(path)
    place = "row 21" if kind == "parquet" else "line 22"
    with pytest.raises(DataError, match=rf"users\.{kind}, {place}: column 'user_id' \(user\) {said}"):
        recommend_to_folder(recommender, path, tmp_path / "out", rows_per_part=SIZE)
    assert not (tmp_path / "out").exists()
    assert dict(UserFile(path, no_user).blocks(SIZE, wanted=lambda block: block < 2)).keys() == {0, 1}


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("user_id", [["a"]], r"'user_id' of .* holds List\(String\)"),
        ("user_id", [True], "holds Boolean"),
        ("user_id", [b"u1"], "holds Binary"),
        ("user_id", [1.5], "holds Float64"),
        ("user_id", pl.Series([1]).cast(pl.Decimal(10, 2)), "holds Decimal"),
        ("history", [3], "'history' of .* holds Int64"),
        ("history", [[True]], r"holds List\(Boolean\)"),
        ("history", [[1.5]], r"holds List\(Float64\)"),
        ("history", [[{"item_id": "i1"}]], r"holds List\(Struct"),
    ],
)
def test_columns_without_ids_are_refused(recommender, tmp_path, column, values, said):
    pl.DataFrame({"user_id": ["u1"]}).with_columns(pl.Series(column, values)).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=said):
        recommend_to_folder(recommender, tmp_path / "a.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_panic_of_polars_becomes_a_data_error(recommender, users, tmp_path, monkeypatch):
    collect = pl.LazyFrame.collect

    def panics(frame, *arguments, **options):
        if "SCAN" in frame.explain():  # polars itself collects other frames
            raise pl.exceptions.PanicException("range end index 7")
        return collect(frame, *arguments, **options)

    monkeypatch.setattr(pl.LazyFrame, "collect", panics)
    with pytest.raises(DataError, match=r"users\.parquet cannot be read: range end index 7"):
        recommend_to_folder(recommender, users, tmp_path / "out")


@pytest.mark.parametrize("how", ["overwritten", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_refused(recommender, users, tmp_path, how):
    def change(done: int, total: int) -> None:
        if done != 2:
            return
        new = users if how == "overwritten" else tmp_path / "new.parquet"
        pl.DataFrame({"user_id": KNOWN[::-1]}).write_parquet(new)
        if how == "replaced":
            new.replace(users)
        elif how == "removed":
            users.unlink()

    with pytest.raises(DataError, match="changed while it was read"):
        recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE, on_progress=change)
    assert len(list((tmp_path / "out").glob("part-*"))) == 2


# --- several processes -----------------------------------------------------------------------------------------


def test_processes_that_start_and_end_together(recommender, users, tmp_path, monkeypatch):
    """All find an empty folder and all find all part files: one starts the folder, and one finishes it."""
    recommend_to_folder(recommender, users, tmp_path / "alone", rows_per_part=SIZE)
    together = threading.Barrier(4, timeout=60)
    real = batch.atomic_create_bytes

    def create(path: Path, content: bytes) -> bool:
        together.wait()
        return real(path, content)

    monkeypatch.setattr(batch, "atomic_create_bytes", create)
    results = []
    options = {"rows_per_part": SIZE}  # all write the same part files, which is harmless, and end together
    threads = [
        threading.Thread(
            target=lambda: results.append(recommend_to_folder(recommender, users, tmp_path / "out", **options))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.finished_here for result in results) == [False, False, False, True]
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_one_of_two_requests_that_start_together_is_refused(recommender, users, tmp_path, monkeypatch):
    real = batch.atomic_create_bytes

    def late(path: Path, content: bytes) -> bool:
        if path.name == "request.json":  # written by another process after this one found no request
            path.parent.mkdir(exist_ok=True)
            other = json.loads(content)
            del other["sha256"]
            other["options"]["k"] = 3
            path.write_text(json.dumps(other | {"sha256": files.sha256_json(other)}))
        return real(path, content)

    monkeypatch.setattr(batch, "atomic_create_bytes", late)
    with pytest.raises(ConfigError, match="k was 3, is 10"):
        recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)


def test_a_file_is_created_once_also_without_hard_links(tmp_path, monkeypatch):
    assert files.atomic_create_bytes(tmp_path / "a", b"1")
    assert not files.atomic_create_bytes(tmp_path / "a", b"2")

    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert files.atomic_create_bytes(tmp_path / "b", b"1")
    assert not files.atomic_create_bytes(tmp_path / "b", b"2")
    assert contents(tmp_path) == {"a": b"1", "b": b"1"}


def test_known_users_cause_no_warning(recommender, users, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recommend_to_folder(recommender, users, tmp_path / "out", rows_per_part=SIZE)
