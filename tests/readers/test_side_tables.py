"""Tables beside the interactions: without header, with decimal commas, without ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rediffuse as rd
from rediffuse.errors import DataError, RediffuseWarning

PAIRS = [(user, item) for user in (1, 2, 3) for item in (10, 20, 30)]


def _write(folder: Path, name: str, lines: list[str]) -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def interactions(tmp_path: Path) -> Path:
    return _write(tmp_path, "interactions.csv", ["user_id,item_id", *(f"{user},{item}" for user, item in PAIRS)])


def test_tables_beside_need_no_header_either(tmp_path: Path) -> None:
    data = rd.read_interactions(
        _write(tmp_path, "ratings.dat", [f"{user}::{item}::5::97830076{item}" for user, item in PAIRS]),
        header=None,
        time=3,
        items=_write(tmp_path, "movies.dat", [f"{item}::Film, {item} (1995)::Comedy|Drama" for item in (10, 20, 30)]),
        title="1",
        users=_write(tmp_path, "users.dat", ["1::F", "2::M", "3::F"]),
        social=_write(tmp_path, "trusts.txt", ["1 2", "2 3"]),
        kg=_write(tmp_path, "kg.txt", ["7 0 9", "8 1 9"]),
        item_entity=_write(tmp_path, "links.txt", ["10 7", "20 8", "30 9"]),
        splits=_write(
            tmp_path, "splits.csv", [f"{user},{item},{'test' if item == 30 else 'train'}" for user, item in PAIRS]
        ),
    )
    assert data.items is not None
    assert data.users is not None
    assert data.social is not None
    assert data.kg is not None
    assert data.items["item_id"].to_list() == [10, 20, 30]
    assert data.items["1"].to_list() == ["Film, 10 (1995)", "Film, 20 (1995)", "Film, 30 (1995)"]
    assert data.users["1"].to_list() == ["F", "M", "F"]
    assert len(data.social) == 2
    assert data.kg.item_entity.tolist() == [[0, 0], [1, 1], [2, 2]]
    assert list(data.given) == ["given"]


@pytest.mark.parametrize(("options", "expected"), [({}, ["1,50", "2"]), ({"decimal": ","}, ["1.50", "2"])])
def test_columns_that_describe_have_decimal_commas(
    tmp_path: Path, interactions: Path, options: dict[str, Any], expected: list[str]
) -> None:
    items = _write(tmp_path, "items.csv", ["item_id;price", "10;1,50", "20;2", "30;"])
    data = rd.read_interactions(interactions, items=items, **options)
    assert data.items is not None
    assert data.items["price"].to_list() == [*expected, None]
    noted = [note for note in data.report["notes"] if "decimal" in note]
    assert len(noted) == (0 if options else 1)


@pytest.mark.parametrize("value", ["1,50", "$2"])
def test_declared_numbers_that_are_none_are_counted(tmp_path: Path, interactions: Path, value: str) -> None:
    items = _write(tmp_path, "x.item", ["item_id:token\tprice:float", f"10\t{value}", "20\t3.5"])
    with pytest.warns(RediffuseWarning, match="1 values of column 'price' .* are no numbers, such as") as warned:
        data = rd.read_interactions(interactions, items=items)
    assert repr(value) in str(warned[0].message)
    assert data.items is not None
    assert data.items["price"].to_list() == [None, 3.5, None]


def test_declared_numbers_with_decimal_commas(tmp_path: Path, interactions: Path) -> None:
    items = _write(tmp_path, "x.item", ["item_id:token\tprice:float", "10\t1,50", "20\t3,5"])
    data = rd.read_interactions(interactions, items=items, decimal=",")
    assert data.items is not None
    assert data.items["price"].to_list() == [1.5, 3.5, None]


def test_rows_without_an_id_are_refused_or_dropped(tmp_path: Path, interactions: Path) -> None:
    items = _write(
        tmp_path, "items.csv", ["item_id,title", ",no id", "NULL,nor here", "10,ten", "20,twenty", "30,thirty"]
    )
    with pytest.raises(DataError, match=r"items.csv, line 2: column 'item_id' \(item\) is empty"):
        rd.read_interactions(interactions, items=items)
    data = rd.read_interactions(interactions, items=items, missing_ids="drop")
    assert data.items is not None
    assert data.items["title"].to_list() == ["ten", "twenty", "thirty"]
    assert data.report["rows_of_the_item_table_with_missing_ids"] == 2
