"""RecBole atomic files."""

from __future__ import annotations

from pathlib import Path

import pytest

from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.readers.interactions import read_interactions
from rediffuse.readers.recbole import read_atomic

FILES = {
    "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "1\t10\t4\t200\n1\t20\t3.5\t100\n2\t10\t5\t50\n",
    "item": 'item_id:token\tmovie_title:token_seq\tyear:float\tzip:token\n10\tThe "Ten\t1995\t007\n20\tTwenty\t\t8\n',
    "user": "user_id:token\tage:float\n1\t20\n2\t30\n",
    "kg": "head_id:token\trelation_id:token\ttail_id:token\nm.1\tfilm.by\tm.2\n",
    "link": "item_id:token\tentity_id:token\n10\tm.1\n99\tm.2\n",
    "net": "source_id:token\ttarget_id:token\n1\t2\n2\t3\n",
}


def write(folder: Path, **files: str) -> Path:
    for suffix, text in files.items():
        (folder / f"small.{suffix}").write_text(text)
    return folder


def test_everything_at_once(tmp_path: Path) -> None:
    data = read_atomic(write(tmp_path, **FILES))
    assert data.user_ids.to_list() == [1, 2, 3]
    assert data.item_ids.to_list() == [10, 20]
    assert data.interactions.row(0).tolist() == [1, 0]
    assert data.has_timestamps
    assert data.interactions.ratings is not None
    assert data.interactions.ratings.tolist() == [3.5, 4.0, 5.0]
    assert data.items is not None
    assert data.items.rows() == [(10, 'The "Ten', 1995.0, "007"), (20, "Twenty", None, "8")]
    assert data.title == "movie_title"
    assert data.users is not None
    assert data.users["age"].to_list() == [20.0, 30.0, None]
    assert data.kg is not None
    assert data.kg.item_entity.tolist() == [[0, 0]]
    assert data.social is not None
    assert len(data.social) == 2
    assert data.report["item_entity_unknown"] == 1


def test_the_inter_file_alone_and_other_separators(tmp_path: Path) -> None:
    write(tmp_path, inter=FILES["inter"].replace("\t", ","))
    one, two = read_atomic(tmp_path / "small.inter"), read_atomic(tmp_path, separator=",")
    assert one.fingerprint == two.fingerprint
    plain = read_interactions(tmp_path / "small.inter", time="timestamp", rating="rating")
    assert plain.fingerprint == one.fingerprint


def test_options_and_other_id_names(tmp_path: Path) -> None:
    text = FILES["inter"].replace("user_id", "session_id").replace("item_id", "book_id")
    data = read_atomic(write(tmp_path, inter=text + "3\t20\t1\t7\n"), min_rating=2, duplicates="last")
    with pytest.raises(DataError, match="No interactions are left"):
        read_atomic(tmp_path, k_core=9)
    assert data.num_interactions == 3


def test_options_replace_what_is_found_by_name(tmp_path: Path) -> None:
    write(tmp_path, **FILES)
    other = tmp_path / "other.csv"
    other.write_text("item_id,title\n10,ten\n20,twenty\n")
    data = read_atomic(tmp_path, items=other, users=None, social=None, kg=None, time=None, order="rating")
    assert data.items is not None
    assert (data.title, data.items["title"].to_list()) == ("title", ["ten", "twenty"])
    assert (data.users, data.social, data.kg) == (None, None, None)
    assert any("no .kg file" in note for note in data.report["notes"])
    assert not data.has_timestamps
    assert data.interactions.row(0).tolist() == [1, 0]
    (tmp_path / "small.link").unlink()
    link = tmp_path / "link.csv"
    link.write_text(FILES["link"].replace("\t", ",").replace(":token", ""))
    assert read_atomic(tmp_path, item_entity=link).kg is not None
    with pytest.raises(ConfigError, match="Did you mean 'min_rating'"):
        read_atomic(tmp_path, minrating=3)


def test_half_a_knowledge_graph_is_said(tmp_path: Path) -> None:
    data = read_atomic(write(tmp_path, inter=FILES["inter"], kg=FILES["kg"]))
    assert data.kg is None
    assert any("no .link file" in note for note in data.report["notes"])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.inter file"):
        read_atomic(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        read_atomic(tmp_path / "nothing")
    write(tmp_path, inter=FILES["inter"].replace("\t50\n", "\tsoon\n"))
    with pytest.raises(DataError, match=r"small\.inter, line 4: column 'timestamp' \(time\) is 'soon'"):
        read_atomic(tmp_path)
    (tmp_path / "other.inter").write_text("x")
    with pytest.raises(DataError, match=r"several \.inter files: other\.inter, small\.inter"):
        read_atomic(tmp_path)


PARTS = {
    "train": "1\t10\t1\n1\t20\t2\n2\t20\t1\n2\t30\t2\n",
    "valid": "1\t30\t3\n2\t10\t3\n",
    "test": "1\t40\t4\n2\t40\t4\n",
}


def benchmark(folder: Path, head: str = "user_id:token\titem_id:token\ttimestamp:float\n") -> Path:
    columns = head.count("\t") + 1
    for name, text in PARTS.items():
        rows = "".join("\t".join(line.split("\t")[:columns]) + "\n" for line in text.splitlines())
        (folder / f"small.{name}.inter").write_text(head + rows)
    (folder / "small.item").write_text(FILES["item"])
    return folder


@pytest.mark.parametrize("timed", [True, False])
def test_benchmark_files_are_a_ready_split(tmp_path: Path, timed: bool) -> None:
    head = "user_id:token\titem_id:token" + ("\ttimestamp:float" if timed else "") + "\n"
    with pytest.warns(RediffuseWarning, match="read as a ready split: split='given'"):
        data = read_atomic(benchmark(tmp_path, head))
    assert data.item_ids.gather(data.interactions.row(0)).to_list() == [10, 20, 30, 40]
    assert data.given["given"].tolist() == [0, 0, 1, 2, 0, 0, 1, 2]
    assert data.title == "movie_title"
    assert data.has_timestamps == timed


def test_one_benchmark_file_alone(tmp_path: Path) -> None:
    with pytest.warns(RediffuseWarning, match=r"small\.train\.inter alone was read, of small\.test\.inter"):
        data = read_atomic(benchmark(tmp_path) / "small.train.inter")
    assert data.num_interactions == 4
    assert data.title == "movie_title"  # from small.item, which is about all parts
    (tmp_path / "small.inter").write_text("x")
    with pytest.raises(DataError, match=r"several \.inter files"):
        read_atomic(tmp_path)


def test_lists_of_items(tmp_path: Path) -> None:
    lists = "session_id:token\titem_id_list:token_seq\na\t3 1 2\nb\t2\n"
    data = read_atomic(write(tmp_path, inter=lists))
    assert data.item_ids.to_list() == [1, 2, 3]
    assert data.item_ids.gather(data.interactions.row(0)).to_list() == [3, 1, 2]
    both = "session_id:token\titem_id_list:token_seq\titem_id:token\na\t3 1\t2\nb\t2\t1\n"
    write(tmp_path, inter=both)
    with pytest.raises(
        DataError, match=r"(?s)column 'item_id_list' with the items before 'item_id'.*--item item_id_list"
    ):
        read_atomic(tmp_path)
    assert read_atomic(tmp_path, item="item_id_list").num_interactions == 3
    assert read_atomic(tmp_path, item="item_id").num_interactions == 2
