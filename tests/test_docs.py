"""Examples of the documents run, and tables match the code."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import rediffuse as rd
from rediffuse import models
from rediffuse.testing import synthetic_interactions

ROOT = Path(__file__).parents[1]


def examples(page: Path) -> list[str]:
    """The Python examples of a page, each after as many empty lines as there are lines before it on the page."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text[: match.start(1)].count("\n") + match.group(1) for match in found]


def run(example: str, page: Path, names: dict[str, object]) -> None:
    exec(compile(example, str(page), "exec"), names)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """A working folder with the files that the pages name: ratings.csv and films.csv."""
    rng = np.random.default_rng(0)
    users, items, length = 60, 200, 12
    at = (rng.integers(items, size=users)[:, None] + np.arange(length)) % items
    ratings = pl.DataFrame(
        {
            "userId": np.repeat([f"u{user}" for user in range(users)], length),
            "movieId": at.ravel(),
            "rating": rng.integers(1, 6, users * length),
            "timestamp": 900_000_000 + 3600 * rng.permutation(users * length),
        }
    )
    ratings.write_csv(tmp_path / "ratings.csv")
    films = pl.DataFrame({"movieId": np.arange(items), "title": [f"Film {item}" for item in range(items)]})
    films.write_csv(tmp_path / "films.csv")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_readme_examples_run(tables):
    first, second = examples(ROOT / "README.md")
    assert 5 <= len([line for line in first.splitlines() if line.strip()]) <= 10
    names: dict[str, object] = {}
    run(first.replace('"epochs": 20', '"epochs": 1'), ROOT / "README.md", names)
    assert (tables / "runs/a/model.safetensors").exists()
    lists = {"ann": [1, 2], "bob": [3]}
    run(second, ROOT / "README.md", {**names, "recommendations": lists, "truth": {"ann": [2], "bob": [3]}})


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_first_page_example_runs(tables):
    (example,) = examples(ROOT / "docs/index.md")
    run(example.replace('"epochs": 20', '"epochs": 1'), ROOT / "docs/index.md", {})
    assert (tables / "runs/first/model.safetensors").exists()


def test_data_examples_run(tables):
    page = ROOT / "docs/data.md"
    # The others need a folder of atomic files, or fetch a public data set.
    chosen = [example for example in examples(page) if "read_atomic" not in example and "fetch" not in example]
    assert len(chosen) >= 3
    names: dict[str, object] = {}
    for example in chosen:
        run(example.replace("k_core=5", "k_core=2"), page, names)


def test_item_features_examples_run(tables):
    page = ROOT / "docs/item-features.md"
    names: dict[str, object] = {}
    for example in examples(page):
        run(example, page, names)
    known = ["category=shoes", "category=hats", "category=running", "title 0", "title 1"]
    assert names["encoder"].names() == known  # pyright: ignore[reportAttributeAccessIssue]
    content = names["encoder"].encode(names["new"])  # pyright: ignore[reportAttributeAccessIssue]
    assert content.sparse.toarray().tolist() == [[1, 0, 0]]
    parsed = names["data"].with_features("image:vector").item_features  # pyright: ignore[reportAttributeAccessIssue]
    assert parsed[0].kind == "vector"
    photos = pl.read_parquet("products.parquet")["photo"]
    assert photos.dtype == pl.Array(pl.Float32, 4)
    assert photos.is_null().to_list() == [False, True, False]


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_cold_start_examples_run(tables):
    page = ROOT / "docs/cold_start.md"
    names: dict[str, object] = {}
    for example in examples(page):
        run(example, page, names)
    assert (tables / "runs/live/model.safetensors").exists()
    rd = names["rd"]
    assert 900 in rd.Recommender.load("runs/today").items["item_id"]  # pyright: ignore[reportAttributeAccessIssue]


def test_the_spark_recipe_answers_frames_as_spark_passes_them(tmp_path):
    """Spark passes histories as numpy arrays, in an iterator of pandas frames per partition."""
    pd = pytest.importorskip("pandas")
    page = ROOT / "docs/batch_inference.md"
    (example,) = (example for example in examples(page) if "mapInPandas" in example)
    trained = rd.train("itemknn", rd.split.leave_one_out(synthetic_interactions()), tmp_path / "run").path
    histories = [np.array(["i1", f"i{n % 40}"], dtype=object) for n in range(20)]
    users = pd.DataFrame({"user_id": [f"u{n}" for n in range(20)], "history": histories})

    class Spark:  # as much of it as the recipe uses
        def __getattr__(self, name):
            return self if name in ("read", "write") else lambda *arguments: self

        def mapInPandas(self, function, schema):
            found = list(function(iter([users[:7], users[7:14], users[14:]])))
            assert len(found) == 3
            self.found, self.schema = pd.concat(found), schema
            return self

    spark = Spark()
    run(example.replace("/shared/runs/a", str(trained)), page, {"spark": spark})
    wanted = rd.Recommender.load(trained).recommend(list(users["user_id"]), [list(h) for h in histories], k=10)
    assert pl.from_pandas(spark.found).equals(wanted.select("user_id", "item_id", "rank", "score"))
    types = {"string": pl.String, "int": pl.Int32, "float": pl.Float32}
    named = dict(column.split() for column in spark.schema.split(", "))
    assert {name: types[kind] for name, kind in named.items()} == dict(pl.from_pandas(spark.found).schema)


def options_on_the_page() -> dict[tuple[str, str], list[str]]:
    """(option, model or "" for all) -> default, values in DiffuRec's presets, as docs/models.md says."""
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8").split("## Options")[1]
    page = {}
    for option, owners, cells in re.findall(r"^\| `(\w+)`(?: \(([\w, ]+)\))? \| (.*)", text, flags=re.MULTILINE):
        for owner in owners.split(", "):
            page[option, owner] = [cell.strip(" `") for cell in cells.split("|")[:3]]
    return page


def shown(value: object) -> str:
    return "null" if value is None else str(value).lower()


@pytest.mark.parametrize("name", [*models.names(), "blend"])
def test_every_option_is_on_the_page_with_its_default(name):
    page = options_on_the_page()
    for option, field in models.model_class(name).Config.model_fields.items():
        row = page.get((option, name)) or page.get((option, ""))
        assert row, f"docs/models.md does not explain {option!r} of {name}."
        assert row[0] == shown(field.get_default()), f"The page has another default of {option!r} of {name}."


@pytest.mark.parametrize(("column", "preset"), [(1, "paper"), (2, "released")])
def test_presets_are_as_the_page_says(column, preset):
    page = {option: cells[column] for (option, _), cells in options_on_the_page().items() if cells[column]}
    actual = models.model_class("diffurec").Config.presets[preset]
    assert page == {option: shown(value) for option, value in actual.items()}


@pytest.mark.parametrize("name", models.names())
def test_configurations_of_data_sets_are_on_the_page(name):
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (`paper:.*) \|$", text, flags=re.MULTILINE))
    wanted = {preset for preset in models.model_class(name).Config.presets if preset.startswith("paper:")}
    assert set(re.findall(r"`(paper:[\w-]+)`", rows.get(name, ""))) == wanted
