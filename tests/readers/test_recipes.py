"""The recipes of docs/large-tables.md: run as they stand there, they make the dataset that `prepare` makes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

import rediffuse as rd

PAGE = (Path(__file__).parents[2] / "docs" / "large-tables.md").read_text(encoding="utf-8")


def recipe(heading: str, language: str) -> str:
    """The block of code below a heading of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)[0]


@pytest.fixture(params=["text", "integers"])
def raw(request, tmp_path, monkeypatch) -> SimpleNamespace:
    """The raw tables in the current folder, in small row groups: uneven, with ties and repeated pairs."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    count = 60_000
    users = (943 * rng.random(count) ** 1.5).astype(np.int64)
    items = (1_682 * rng.random(count) ** 3).astype(np.int64)
    if request.param == "text":  # of which the order by bytes is neither that of letters nor that of numbers
        letters = np.array(["z", "É", "a", "Z", "日", "e\u0301", "_"])
        user_ids, item_ids = ([f"{letters[n % 7]}{n}" for n in numbers] for numbers in (users.tolist(), items.tolist()))
    else:
        user_ids, item_ids = (users * 7 - 100).tolist(), (items + 2**40).tolist()
    table = pl.DataFrame(
        {
            "user_id": user_ids,
            "item_id": item_ids,
            "rating": rng.integers(1, 6, count),
            "timestamp": 10**9 + rng.integers(0, 40, count),
            "row": range(count),
        }
    )
    table.write_parquet("ratings.parquet", row_group_size=7_000)
    titles = table.select(pl.col("item_id").unique()).with_columns(title=pl.format("the {}", "item_id"))
    titles.sample(fraction=0.9, shuffle=True, seed=1).write_parquet("titles.parquet")
    data = rd.read_interactions("ratings.parquet", time="timestamp", rating="rating", items="titles.parquet")
    Path("tables").mkdir()
    return SimpleNamespace(data=data, folder=tmp_path)


def test_duckdb(raw):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect() as connection:
        connection.execute(recipe("DuckDB", "sql"))
    made = rd.read_numbered("tables")
    assert made.fingerprint == raw.data.fingerprint
    assert made.items is not None
    assert raw.data.items is not None
    assert made.items.equals(raw.data.items)
    assert made.title == "title"
    assert rd.split.global_time(made).fingerprint == rd.split.global_time(raw.data).fingerprint


@pytest.mark.slow
def test_ray_data(raw):
    pytest.importorskip("ray")
    Path("recipe.py").write_text(recipe("Ray Data", "python"), encoding="utf-8")
    done = subprocess.run([sys.executable, "recipe.py"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "60000 rows were written" in done.stdout
    assert rd.read_numbered("tables").fingerprint == raw.data.fingerprint


def test_spark_is_python():
    compile(recipe("Spark", "python"), "recipe", "exec")


def test_ties_matter(raw):
    """The tables above have ties, in which another order of rows is another dataset."""
    backwards = pl.read_parquet("ratings.parquet").reverse()
    assert rd.read_interactions(backwards, time="timestamp", rating="rating").fingerprint != raw.data.fingerprint
