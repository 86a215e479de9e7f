"""What errors about files advise: it has to fit the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rediffuse as rd
from rediffuse.errors import DataError


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("sep=;\nuser_id;item_id\n1;2\n", {}, r"says to Excel that ';' separates.*Remove that line"),
        ("# made by x\nuser_id,item_id\n1,2\n2,3\n", {}, "looks like a comment"),
        ("# Directed graph\n# From To\n1\t2\n2\t3\n", {"header": None}, "begins with a comment"),
        ("user_id,item_id\r\n1,2\n1,3\r2,2\n", {}, r"line 3 holds a bare carriage return"),
        ('{"columns": ["user_id"], "data": [[1, 2]]}', {}, "one JSON object of lists, not rows"),
        ('{"user_id": {"0": 1}, "item_id": {"0": 1}}', {}, "one JSON object of columns, not rows"),
        ('{"user_id": {"id": 1}, "item_id": 1}\n{"user_id": {"id": 2}, "item_id": 2}\n', {}, r"of its fields \(id\)"),
        (" 22605 42915\n 1     2\n", {"header": None}, "Several spaces are between the fields"),
        ("1,2\n2,3\n", {"header": None, "time": "when"}, "named by their place.*as a frame"),
    ],
)
def test_remedies_fit_the_file(tmp_path: Path, content: str, options: dict[str, Any], said: str) -> None:
    path = tmp_path / "table"
    path.write_bytes(content.encode())
    with pytest.raises(DataError, match=f"(?s){said}"):
        rd.read_interactions(path, **options)


@pytest.mark.parametrize("separator", [r"\001", r"\u0001", r"\x01"])
def test_separators_of_hive(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "000000_0"
    path.write_bytes(b"user_id\x01item_id\n1\x012\n2\x013\n")
    assert rd.read_interactions(path, separator=separator).num_items == 2
