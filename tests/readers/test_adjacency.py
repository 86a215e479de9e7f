"""Text of one line per user is read where it is asked for, and named where a table was expected."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.errors import ConfigError, DataError

TEXT = "0 5 3 9\n1 3\n2\n\n3\t9 5 5\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "train.txt"
    path.write_text(TEXT)
    return path


def pairs(data: rd.Dataset) -> dict[object, list[object]]:
    rows = data.interactions
    return {data.user_ids[u]: [data.item_ids[int(i)] for i in rows.row(u)] for u in range(data.num_users)}


def test_each_pair_is_an_interaction(path: Path) -> None:
    data = rd.read_interactions(path, format="adjacency")
    assert pairs(data) == {0: [5, 3, 9], 1: [3], 3: [9, 5, 5]}


def test_ids_may_be_text_and_options_apply(path: Path) -> None:
    path.write_text("ann x y\nbob y z y\n")
    data = rd.read_interactions(path, format="adjacency", user="u", item="i", duplicates="first")
    assert pairs(data) == {"ann": ["x", "y"], "bob": ["y", "z"]}


@pytest.mark.parametrize("header", [0, None])
@pytest.mark.parametrize("text", [TEXT, "0 0 0 3\n1 2\n", "0\n1 2 4\n2 5 6\n", "0 1\n1 2 4\n"])
def test_a_file_that_looks_like_it_names_the_option(path: Path, text: str, header: None) -> None:
    path.write_text(text)
    with pytest.raises(DataError, match="--format adjacency"):
        rd.read_interactions(path, header=header)


def test_tables_are_not_taken_for_it(path: Path) -> None:
    path.write_text("user_id item_id\n1 2\n2 3\n")
    assert rd.read_interactions(path).num_interactions == 2
    path.write_text("1 2\n2 3\n")
    assert pairs(rd.read_interactions(path, header=None)) == {1: [2], 2: [3]}


def test_what_cannot_be_read_is_said(path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'adjacency'"):
        rd.read_interactions(path, format="adjacent")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="reads a text file"):
        rd.read_interactions(path.parent, format="adjacency")
    with pytest.raises(ConfigError, match="a dataframe is none"):
        rd.read_interactions(rd.data, format="adjacency")
    path.write_text("user item\n1 2\n2 3\n")
    with pytest.raises(DataError, match=r"train\.txt, line 1, holds items that are no integers"):
        rd.read_interactions(path, format="adjacency")
    path.write_text("1\n2\n")
    with pytest.raises(DataError, match="holds no pair of user and item"):
        rd.read_interactions(path, format="adjacency")
    path.write_bytes(b"1 \xff\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        rd.read_interactions(path, format="adjacency")


def test_the_command_line_has_the_option(path: Path) -> None:
    done = CliRunner().invoke(app, ["prepare", str(path), "--format", "adjacency", "-o", str(path.parent / "out")])
    assert done.exit_code == 0, done.output
    assert pairs(rd.load_dataset(path.parent / "out")) == {0: [5, 3, 9], 1: [3], 3: [9, 5, 5]}


def test_packed_text(tmp_path: Path) -> None:
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(b"0 5 6\n1 7\n2 5 6 7\n"))
    assert rd.read_interactions(path, format="adjacency").num_interactions == 6
    with pytest.raises(DataError, match="it looks like adjacency text"):
        rd.read_interactions(path, header=None)
