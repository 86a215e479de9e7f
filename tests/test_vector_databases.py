"""The code of docs/vector-databases.md runs, and gives the lists of the library."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.testing import synthetic_interactions, train_small

PAGE = Path(__file__).parents[1] / "docs" / "vector-databases.md"
pytestmark = [
    pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact"),
]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with events.csv, a run in runs/live, and its vectors, as the page assumes them; and the run."""
    folder = tmp_path_factory.mktemp("shop")
    data = synthetic_interactions()
    users = data.user_ids.gather(data.interactions.owners)
    items = data.item_ids.gather(data.interactions.items)
    pl.DataFrame({"customer": users, "sku": items}).write_csv(folder / "events.csv")
    run = train_small("sasrec", folder / "runs", {"epochs": 2}, data=data).run
    command = re.search(r"^rediffuse (export .*?)(?: *#.*)?$", PAGE.read_text(), flags=re.MULTILINE).group(1).split()
    arguments = [str(run.path) if each == "runs/live" else each for each in command]
    arguments[arguments.index("-o") + 1] = str(folder / "vectors")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return folder, run


def test_qdrant_gives_the_lists_of_the_library(exported, monkeypatch):
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed")
    folder, run = exported
    monkeypatch.chdir(folder)
    names: dict = {}
    for code in [block for block in blocks("python") if "sink_csv" not in block]:
        exec(compile(code, str(PAGE), "exec"), names)
    lists = names["lists"]
    assert len(lists) == 20
    found = rd.Recommender.load(run).recommend(users=list(lists), k=10)
    assert lists == {user[0]: rows["item_id"].to_list() for user, rows in found.group_by("user_id")}


def test_the_text_for_pgvector_holds_the_vectors(exported, monkeypatch):
    """PostgreSQL is not here; what its COPY reads is."""
    folder, _ = exported
    monkeypatch.chdir(folder)
    (code,) = [block for block in blocks("python") if "sink_csv" in block]
    exec(compile(code, str(PAGE), "exec"), {})
    for name, key in (("items", "item_id"), ("queries", "user_id")):
        table, text = pl.read_parquet(f"vectors/{name}.parquet"), pl.read_csv(f"{name}.csv")
        assert text[key].to_list() == table[key].to_list()
        numbers = text["vector"].str.json_decode(pl.List(pl.Float64)).cast(pl.List(pl.Float32)).list.to_array(16)
        assert numbers.equals(table["vector"].rename("vector")), name
        # The columns of the page are those of the file, in its order.
        (columns,) = re.findall(rf"CREATE TABLE {name} \((.*?)\);", "".join(blocks("sql")))
        assert [column.split()[0] for column in columns.split(", ")] == text.columns
