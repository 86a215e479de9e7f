"""Every option of `rediffuse prepare` does something or is refused, for every kind of input."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
from pathlib import Path

import polars as pl
import pytest
import typer

import rediffuse as rd
from rediffuse import cli

KINDS = ("csv", "parquet folder", "inter file")
# Read by the same code as one of those.
ALIKE = ("csv folder", "gzip", "parquet", "inter folder")


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    """Interactions in every form, and the tables beside them."""
    folder = tmp_path_factory.mktemp("prepare")
    rows = [
        (f"u{(n * n) % 7}", f"i{n % 5}", 1_700_000_000 + (n * 37) % 10 * 86_400, n % 4, ("view", "buy")[n % 3 == 0], -n)
        for n in range(60)
    ]
    names = ["user_id", "item_id", "timestamp", "rating", "event", "place"]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        day=pl.from_epoch("timestamp").dt.strftime("%d/%m/%Y"),
        other_user=pl.col("user_id") + "x",
        other_item=pl.col("item_id") + "x",
        gappy=pl.when(pl.col("item_id") == "i0").then(pl.lit("NULL")).otherwise(pl.col("user_id")),
        listed=pl.col("item_id") + "|z",
    )
    for name in ("csv", "parquet", "atomic"):
        (folder / name).mkdir()
    table.write_csv(folder / "csv/a.csv")
    table.write_parquet(folder / "parquet/a.parquet")
    (folder / "a.csv.gz").write_bytes(gzip.compress((folder / "csv/a.csv").read_bytes()))
    kinds = {"timestamp": "float", "rating": "float", "place": "float"}
    table.rename({name: f"{name}:{kinds.get(name, 'token')}" for name in table.columns}).write_csv(
        folder / "atomic/atomic.inter", separator="\t"
    )
    items = table["item_id"].unique().sort()
    pl.DataFrame({"item_id": items, "name": items + " name", "title": items + " title"}).write_parquet(
        folder / "items.parquet"
    )
    # The atomic files describe items already, so that --title has something to name.
    pl.DataFrame({"item_id:token": items, "title:token": items + " t", "name:token": items + " n"}).write_csv(
        folder / "atomic/atomic.item", separator="\t"
    )
    users = table["user_id"].unique().sort()
    pl.DataFrame({"user_id": users, "age": range(len(users))}).write_parquet(folder / "users.parquet")
    pl.DataFrame({"source": users[:-1], "target": users[1:]}).write_parquet(folder / "social.parquet")
    pl.DataFrame({"head": items, "relation": "r", "tail": "t"}).write_parquet(folder / "kg.parquet")
    pl.DataFrame({"item_id": items, "entity_id": items}).write_parquet(folder / "link.parquet")
    table.select("user_id", "item_id", "timestamp", split=pl.lit("train")).write_parquet(folder / "splits.parquet")
    return folder


SOURCES = {
    "csv": "csv/a.csv",
    "csv folder": "csv",
    "gzip": "a.csv.gz",
    "parquet": "parquet/a.parquet",
    "parquet folder": "parquet",
    "inter file": "atomic/atomic.inter",
    "inter folder": "atomic",
}

# Option -> a value, and what must go with it. A value that names a file is in the folder of the tables.
OPTIONS: dict[str, tuple[str, list[str]]] = {
    "--user": ("other_user", []),
    "--item": ("other_item", []),
    "--time": ("place", []),
    "--time-format": ("%d/%m/%Y", ["--time", "day"]),
    "--time-unit": ("days", ["--time", "place"]),
    "--order": ("place", []),
    "--rating": ("place", []),
    "--event-type": ("event", ["--target-event", "buy"]),
    "--weights": ("view=1,buy=2", ["--event-type", "event"]),
    "--target-event": ("buy", ["--event-type", "event"]),
    "--min-rating": ("2", ["--rating", "rating"]),
    "--k-core": ("10", []),
    "--duplicates": ("last", []),
    "--missing-ids": ("drop", ["--user", "gappy"]),
    "--item-separator": ("|", ["--item", "listed"]),
    "--items": ("items.parquet", []),
    "--title": ("name", ["--items", "items.parquet"]),
    "--users": ("users.parquet", []),
    "--item-features": ("name:text", ["--items", "items.parquet"]),
    "--user-features": ("age", ["--users", "users.parquet"]),
    "--social": ("social.parquet", []),
    "--kg": ("kg.parquet", ["--item-entity", "link.parquet"]),
    "--item-entity": ("link.parquet", ["--kg", "kg.parquet"]),
    "--splits": ("splits.parquet", []),
    "--encoding": ("utf-16", []),
    "--separator": (";", []),
    "--format": ("adjacency", []),
}
# How text is written: without effect where a table has no quotes, no commas in numbers, and names.
TEXT_FORM = {"--quoting", "--decimal", "--no-header"}
# Options that may be refused for some kinds, as they cannot mean anything there or do not fit these data.
REFUSED = {
    "--encoding",
    "--separator",
    "--format",
    "--rating",
    "--kg",
    "--item-entity",
    "--event-type",
    "--user",
    "--item",
}


def prepare(*arguments: object) -> tuple[int, str]:
    """Exit code; stdout and stderr."""
    out, code = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        patch.setattr(sys, "argv", ["rediffuse", "prepare", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue()


def content(folder: Path) -> tuple:
    """Everything that a dataset holds."""
    data = rd.load_dataset(folder)
    tables = [None if table is None else table.to_dict(as_series=False) for table in (data.items, data.users)]
    given = {scheme: subset.tolist() for scheme, subset in data.given.items()}
    return data.fingerprint, data.features_fingerprint, data.title, tables, given, data.has_timestamps


def test_every_option_is_enumerated() -> None:
    command = typer.main.get_command(cli.app).commands["prepare"]  # pyright: ignore[reportAttributeAccessIssue]
    flags = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert flags - {"--out", "--json"} - TEXT_FORM == OPTIONS.keys()


@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
@pytest.mark.parametrize("kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ALIKE)])
def test_options_are_used_or_refused(tables: Path, tmp_path: Path, kind: str) -> None:
    source, number = tables / SOURCES[kind], iter(range(1000))

    def run(*options: str) -> tuple[int, str, Path]:
        out = tmp_path / str(next(number))
        placed = [str(tables / option) if (tables / option).is_file() else option for option in options]
        return *prepare(source, "-o", out, *placed), out

    code, said, plain = run()
    assert code == 0, said
    for option, (value, needs) in OPTIONS.items():
        # The baseline has what must go with the option, where that works alone.
        code, said, out = run(*needs) if needs else (0, "", plain)
        baseline = content(out) if code == 0 else content(plain)
        code, said, out = run(*needs, option, value)
        if code == 0:
            assert content(out) != baseline, f"{option} had no effect on {kind}."
            continue
        assert option in REFUSED, said
        assert code == 2
        name = option.strip("-").replace("-", "_")
        words = {"encoding": "UTF-16", "separator": "separated"}
        assert name in said or words.get(name, name) in said or value in said, said
        assert not out.exists()


def test_text_options_need_a_text_file(tables: Path, tmp_path: Path) -> None:
    for option, value in (("--separator", ","), ("--encoding", "latin-1")):
        code, said = prepare(tables / "parquet", "-o", tmp_path / "x", option, value)
        assert code == 2
        assert f"{option.strip('-')}={value!r} was given, and none of the tables is a text file" in said
        # An item table in text may have them.
        items = tables / "atomic/atomic.item"
        columns = ("--item", "item_id", "--items", items)
        code, said = prepare(tables / "parquet", "-o", tmp_path / "y", *columns, option, value.replace(",", "\t"))
        assert code == 0, said


def test_the_form_of_text_needs_a_text_file(tables: Path, tmp_path: Path) -> None:
    for option in (("--quoting", "none"), ("--decimal", ","), ("--no-header",)):
        code, said = prepare(tables / "parquet", "-o", tmp_path / "x", *option)
        assert code == 2, option
        assert "none of the tables is a text file" in said


def test_weights_are_parsed(tables: Path, tmp_path: Path) -> None:
    columns = (tables / "csv", "-o", tmp_path / "x", "--event-type", "event")
    code, said = prepare(*columns, "--weights", "view=1, buy=2.5", "--target-event", "buy", "--json")
    assert code == 0, said
    facts = json.loads(said[said.index("{") :])
    assert facts["target_interactions"] == facts["report"]["events"]["buy"]
    for wrong, says in (("view", "not of the form"), ("view=x", "not of the form"), ("view=1,view=2", "named twice")):
        code, said = prepare(*columns, "--weights", wrong)
        assert code == 2
        assert says in said
    code, said = prepare(*columns, "--weights", "view=1")
    assert code == 2
    assert "'view' (" in said
    assert "'buy' (" in said
