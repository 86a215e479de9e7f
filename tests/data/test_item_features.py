"""Declared item and user features: reading the declaration, guesses, errors, and where datasets carry them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse import cli
from rediffuse.data.item_features import Feature, parse_features
from rediffuse.data.store import MANIFEST
from rediffuse.errors import ConfigError, DataError, RediffuseWarning
from rediffuse.files import sha256_json
from rediffuse.models.baselines.bprmf import BPRMF
from rediffuse.training.loop import Trainer

TABLE = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "category": ["x|y", "y", None, "x; z"],
        "tags": [["t", "u"], ["u"], [], None],
        "price": [1.5, 2.0, float("nan"), 9.0],
        "year": ["1999", "2000", "", "2004"],
        "code": ["007", "012", "100", None],
        "title": ["A red shoe", "A blue shoe", None, "A hat"],
        "image": [[1.0, 2.0], None, [0.0, 1.0], [2.0, 2.0]],
        "a:b": ["p", "q", "p", "q"],
        "made": pl.Series([None, None, None, "2020-01-01"]).str.to_date(),
        "nothing": pl.Series([None, "", " ", None], dtype=pl.String),
    }
)
INTERACTIONS = pl.DataFrame({"user_id": ["u", "u", "v", "v", "w"] * 2, "item_id": list("abcdaabcdb")})


def read(**options) -> rd.Dataset:
    users = pl.DataFrame({"user_id": ["u", "v", "w"], "age": [20, 30, 40], "city": ["P", "Q", "P"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RediffuseWarning)
        return rd.read_interactions(INTERACTIONS, items=TABLE, users=users, **options)


def test_kinds_are_read_or_guessed_and_guesses_are_said() -> None:
    notes: list[str] = []
    spec = " category, tags,price,year,code,title:text,image , a:b,year2:text"
    with pytest.raises(ConfigError, match="no column 'year2'") as error:
        parse_features(spec, TABLE, "item", notes.append)
    assert "Did you mean 'year'?" in str(error.value)
    notes.clear()
    found = parse_features(spec.removesuffix(",year2:text"), TABLE, "item", notes.append)
    kinds = ["category", "category", "number", "number", "category", "text", "vector", "category"]
    assert [feature.kind for feature in found] == kinds
    assert found[-1] == Feature("a:b", "category")  # the column of this very name, not a column 'a' of kind 'b'
    said = {note.split("'")[1]: note for note in notes if "taken as" in note}
    assert said.keys() == {"category", "tags", "price", "year", "code", "image", "a:b"}
    assert "3 values, up to 2 per row" in said["category"]
    assert "number (from 1999 to 2004)" in said["year"]
    assert "declare year:category" in said["year"]
    assert "2 numbers per row" in said["image"]
    assert "item_features: 'tags' is missing in 2 of 4 rows." in notes
    assert "item_features: 'title' is missing in 1 of 4 rows." in notes
    assert parse_features(["category", "a:b:category"], TABLE, "item") == (
        Feature("category", "category"),
        Feature("a:b", "category"),
    )


def test_text_that_is_hardly_a_category_warns() -> None:
    table = pl.DataFrame({"item_id": range(40), "name": [f"thing number {n}" for n in range(40)]})
    with pytest.warns(RediffuseWarning, match="40 of its values occur once; if it is free text, declare name:text"):
        parse_features("name", table, "item")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parse_features("name:text", table, "item")
        parse_features("name:category", table, "item")


@pytest.mark.parametrize(
    ("spec", "kind", "match"),
    [
        ("title:txt", ConfigError, "no kind 'txt', of 'title'.\n  Did you mean 'text'"),
        ("title:", ConfigError, "no kind '', of 'title'"),
        ("titel:text", ConfigError, "no column 'titel'.\n  Did you mean 'title'"),
        ("price,price:category", ConfigError, "names 'price' twice"),
        ("price,,year", ConfigError, "a part without a column"),
        ("", ConfigError, "a part without a column"),
        ("item_id:category", ConfigError, "the column of ids"),
        (7, ConfigError, "item_features is 7, not text"),
        ([7], ConfigError, "item_features is a list, not text"),
        ("nothing:text", DataError, "'nothing' of the item table is empty for all 4 rows"),
        ("title:number", DataError, "3 values are no finite numbers, such as 'A red shoe' in row 0 .item 'a'."),
        ("price:vector", DataError, "so it is no vector.\n  It can be price:category or price:number"),
        ("price:text", DataError, "so it is no text"),
        ("image:category", DataError, "so it is no category.\n  It can be image:vector"),
        ("tags:number", DataError, "so it is no number.\n  It can be tags:category or tags:text"),
        ("made", DataError, "holds values of type Date, so it is no category.\n  Make text, numbers"),
    ],
)
def test_what_cannot_be_declared(spec, kind, match) -> None:
    with pytest.raises(kind, match=match):
        parse_features(spec, TABLE, "item")


def test_vectors_and_numbers_are_checked_when_declared() -> None:
    vectors = pl.DataFrame({"item_id": ["a", "b", "c"], "v": [[1.0, 2.0], None, [1.0]]})
    with pytest.raises(DataError, match=r"of 2 in row 0 \(item 'a'\), of 1 in row 2 \(item 'c'\)"):
        parse_features("v", vectors, "item")
    broken = pl.DataFrame({"user_id": [5, 6], "v": [[1.0, 2.0], [float("inf"), 1.0]], "n": [float("inf"), 1.0]})
    with pytest.raises(DataError, match=r"user table: the vector in row 1 \(user 6\)"):
        parse_features("v", broken, "user")
    with pytest.raises(DataError, match=r"'n' of the user table: 1 values are no finite numbers, such as inf in row 0"):
        parse_features("n", broken, "user")


def test_datasets_carry_features_to_the_training_view_and_through_files(tmp_path: Path) -> None:
    data = read(item_features="category,title:text,image", user_features=["age", "city"])
    items = (Feature("category", "category"), Feature("title", "text"), Feature("image", "vector"))
    users = (Feature("age", "number"), Feature("city", "category"))
    assert (data.item_features, data.user_features) == (items, users)
    assert "item features  category:category, title:text, image:vector" in repr(data)
    assert any("'city' was taken as a category" in note for note in data.report["notes"])
    again = rd.load_dataset(data.save(tmp_path / "data"))
    assert (again.item_features, again.user_features) == (items, users)
    assert again.fingerprint == data.fingerprint
    for made in (again, rd.augment(rd.split.none(data), "random", n=2), data.without_synthetic()):
        view = rd.split.leave_one_out(made).training_view() if made is again else rd.split.none(made).training_view()
        assert (view.item_features, view.user_features) == (items, users)
    view = rd.split.leave_one_out(data).training_view()
    model = BPRMF(BPRMF.Config(), data.num_items, data.num_users)
    trained_on = Trainer(model, view, tmp_path, seed=0, user_ids=data.user_ids).data
    assert trained_on.content is not None
    assert trained_on.user_content is not None
    assert (len(trained_on.content), len(trained_on.user_content)) == (data.num_items, data.num_users)


def test_older_folders_have_none_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    data = read(item_features="category")
    path = data.save(tmp_path / "data") / MANIFEST

    def rewrite(**changes) -> None:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        manifest |= changes
        manifest = {name: value for name, value in manifest.items() if value is not None and name != "sha256"}
        path.write_text(json.dumps(manifest | {"sha256": sha256_json(manifest)}), encoding="utf-8")

    rewrite(item_features=None, user_features=None)
    assert rd.load_dataset(tmp_path / "data").item_features == ()
    for wrong in (7, [["category"]], [["category", 3]], [["category", "kind"]], [["absent", "category"]]):
        rewrite(item_features=wrong)
        with pytest.raises(DataError, match="item_features"):
            rd.load_dataset(tmp_path / "data")


def test_the_features_fingerprint_covers_what_is_declared_and_nothing_else() -> None:
    plain = read()
    other = TABLE.with_columns(title=pl.Series(["A red shoe", "A blue shoe", None, "A cap"]))
    declared = {spec: plain.with_features(spec) for spec in ("category", "title:text", "category,price", "image")}
    assert len({plain.features_fingerprint, *(data.features_fingerprint for data in declared.values())}) == 5
    assert plain.with_features("title:category").features_fingerprint != declared["title:text"].features_fingerprint
    assert declared["category"].with_features([]).features_fingerprint == plain.features_fingerprint
    assert {data.interactions_fingerprint for data in declared.values()} == {plain.interactions_fingerprint}
    changed = rd.read_interactions(INTERACTIONS, items=other.reverse().select(reversed(other.columns)))
    assert changed.with_features("category").features_fingerprint == declared["category"].features_fingerprint
    assert changed.with_features("title:text").features_fingerprint != declared["title:text"].features_fingerprint
    users = plain.with_features(users="age")
    assert users.features_fingerprint not in {
        plain.features_fingerprint,
        plain.with_features("year").features_fingerprint,
    }
    # A missing value is not an empty text, and not the next row's value.
    moved = TABLE.with_columns(title=pl.Series(["A red shoe", None, "A blue shoe", "A hat"]))
    moved_data = rd.read_interactions(INTERACTIONS, items=moved, item_features="title:text")
    assert moved_data.features_fingerprint != declared["title:text"].features_fingerprint


def test_another_declaration_takes_the_place_of_the_first_one_and_of_its_notes() -> None:
    data = read(item_features="category,price", user_features="age")
    again = data.with_features("price:number")
    assert again.item_features == (Feature("price", "number"),)
    assert again.user_features == data.user_features
    said = [note for note in again.report["notes"] if "_features: " in note]
    assert said == [
        "user_features: 'age' was taken as a number (from 20 to 40); if these are codes, declare age:category.",
        "item_features: 'price' is missing in 1 of 4 rows.",
    ]
    assert data.with_features() is data


def test_features_without_a_table() -> None:
    with pytest.raises(ConfigError, match="item_features='brand' was given without a table of items"):
        rd.read_interactions(INTERACTIONS, item_features="brand")
    with pytest.raises(ConfigError, match="user_features='age' was given without a table of users"):
        rd.read_interactions(INTERACTIONS, items=TABLE, user_features="age")


def test_atomic_files_and_text_tables(tmp_path: Path) -> None:
    INTERACTIONS.rename({"user_id": "user_id:token", "item_id": "item_id:token"}).write_csv(
        tmp_path / "x.inter", separator="\t"
    )
    items = pl.DataFrame(
        {"item_id:token": list("abcd"), "price:float": [1.0, 2.5, None, 4.0], "kind:token": list("pqpq")}
    )
    items.write_csv(tmp_path / "x.item", separator="\t")
    data = rd.read_atomic(tmp_path, item_features="price,kind")
    assert data.item_features == (Feature("price", "number"), Feature("kind", "category"))
    TABLE.select("item_id", "year", "code").write_csv(tmp_path / "items.csv")
    data = rd.read_interactions(INTERACTIONS, items=tmp_path / "items.csv", item_features="year,code")
    assert data.item_features == (Feature("year", "number"), Feature("code", "category"))


def test_features_of_items_that_remain_are_those_of_the_dataset() -> None:
    data = rd.read_interactions(
        INTERACTIONS.filter(pl.col("item_id") != "c"), items=TABLE, item_features="category", k_core=2
    )
    assert data.items is not None
    assert data.items["item_id"].to_list() == data.item_ids.to_list()
    assert data.item_features == (Feature("category", "category"),)
    assert np.isin(data.item_ids.to_numpy(), list("abd")).all()


def test_public_data_sets_are_declared_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sets" / "shop"
    folder.mkdir(parents=True)
    INTERACTIONS.write_parquet(folder / "interactions.parquet")
    TABLE.write_parquet(folder / "items.parquet")
    monkeypatch.setenv("REDIFFUSE_DATA", str(tmp_path / "sets"))

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["rediffuse", "data", "shop", "-o", str(tmp_path / "out"), *arguments])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    assert run("--item-features", "category,titel:text") != 0
    assert "no column 'titel'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("--item-features", "category,title:text", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["item_features"] == ["category:category", "title:text"]
    assert said["fingerprint"] == rd.load_dataset(tmp_path / "out").fingerprint
    assert any("'category' was taken as a category" in note for note in said["report"]["notes"])
    assert run("--item-features", "category,title:text") == 0
    assert "category:category, title:text" in " ".join(capsys.readouterr().out.split())
