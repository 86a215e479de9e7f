"""Addresses: every command, every option that names a file or folder, and every function refuse unknown ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import typer

import rediffuse as rd
from rediffuse.addresses import address_of, refuse_address
from rediffuse.cli.app import app
from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.testing import synthetic_interactions


def commands(group: Any = None, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands of the CLI: the words that call it, and the command."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*before, name))
        else:
            yield (*before, name), command


COMMANDS = dict(commands())
PARAMS = [(words, param) for words, command in COMMANDS.items() for param in command.params if param.name != "help"]
# Options of text whose help speaks of files, and which name none.
NO_PLACES = {
    "encoding", "separator", "quoting", "decimal", "format", "title", "diversity_by", "item_features", "user_features",
    "event_type", "item_filter", "protocol", "repo", "log_format", "max_per",
}  # fmt: skip


def is_path(param: Any) -> bool:
    return "Path" in str(param.type_descriptor)


def shown(words: tuple[str, ...], param: Any) -> str:
    return f"{' '.join(words)} {param.name}"


def arguments(words: tuple[str, ...], changed: Any, value: str) -> list[str]:
    """A command line with harmless values for what is required, and ``value`` for one parameter."""
    line = list(words)
    for param in COMMANDS[words].params:
        if param is not changed and not param.required:
            continue
        given = value if param is changed else "/nowhere"
        line += [given] if param.param_type_name == "argument" else [max(param.opts, key=len), given]
    return line


PATHS = [pytest.param(words, param, id=shown(words, param)) for words, param in PARAMS if is_path(param)]


def test_commands_are_found():
    assert COMMANDS.keys() >= {("augment", "pdrec"), ("train",)}
    assert min(len(COMMANDS) - 20, len(PATHS) - 50) > 0


@pytest.mark.parametrize(("words", "param"), PATHS)
@pytest.mark.parametrize("address", ["unknown://bucket/x", "file:///data/x"])
def test_every_path_of_every_command_refuses_what_it_does_not_know(words, param, address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        typer.main.get_command(app)(arguments(words, param, address), standalone_mode=False)
    name = max(param.opts, key=len) if param.param_type_name == "option" else param.name.upper()
    assert raised.value.problem.startswith(f"{name} is {address.replace(':///', '://')}, ")
    assert raised.value.remedy
    if address.startswith("unknown"):
        assert "unknown:// is not a known scheme" in raised.value.problem
        assert "hf://" in raised.value.remedy
    assert not list(tmp_path.iterdir())


def test_no_option_of_text_names_a_file():
    """An option that does is of type `Path`, so that the check above sees it."""
    places = re.compile(r"\b(files?|folders?|tables?|runs?|path)\b", re.IGNORECASE)
    suspects = {
        shown(words, param)
        for words, param in PARAMS
        if not is_path(param) and "str" in str(param.type_descriptor) and places.search(param.help or "")
        if param.name not in NO_PLACES
    }
    assert suspects == {"train phases"}  # name=RUN; `rediffuse.train` looks at each


ADDRESS = "unknown://bucket/x"
DATA = synthetic_interactions(40, 30, 6)
TABLE = pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3]})
CALLS = {
    "read_interactions": lambda: rd.read_interactions(ADDRESS),
    "read_interactions list": lambda: rd.read_interactions([ADDRESS]),
    "read_interactions items": lambda: rd.read_interactions(TABLE, items=Path(ADDRESS)),
    "read_interactions adjacency": lambda: rd.read_interactions(ADDRESS, format="adjacency"),
    "read_atomic": lambda: rd.read_atomic(ADDRESS),
    "read_numbered": lambda: rd.read_numbered(ADDRESS),
    "load_partitions": lambda: rd.load_partitions(ADDRESS, [0]),
    "load_dataset": lambda: rd.load_dataset(Path(ADDRESS)),
    "public_dataset from": lambda: rd.public_dataset("diffurec", from_folder=ADDRESS),
    "public_dataset out": lambda: rd.public_dataset("ml-100k", out=ADDRESS),
    "public_dataset root": lambda: rd.public_dataset("ml-100k", root=ADDRESS),
    "save": lambda: DATA.save(ADDRESS),
    "train": lambda: rd.train("popularity", DATA, ADDRESS),
    "train data": lambda: rd.train("popularity", ADDRESS, "/nowhere"),
    "train phases": lambda: rd.train("sasrec", DATA, "/nowhere", phases_from={"fit": ADDRESS}),
    "evaluate": lambda: rd.evaluate(ADDRESS, DATA),
    "compare": lambda: rd.compare([ADDRESS]),
    "compare out": lambda: rd.compare(["/nowhere"], out=ADDRESS),
    "blend": lambda: rd.blend([ADDRESS], DATA, out="/nowhere"),
    "blend out": lambda: rd.blend(["/nowhere"], DATA, out=ADDRESS),
    "tune": lambda: rd.tune("popularity", DATA, out=ADDRESS),
    "refit": lambda: rd.refit(ADDRESS, DATA, out="/nowhere"),
    "refit out": lambda: rd.refit("/nowhere", DATA, out=ADDRESS),
    "update": lambda: rd.update(ADDRESS, DATA, out="/nowhere"),
    "update out": lambda: rd.update("/nowhere", DATA, out=ADDRESS),
    "update_histories": lambda: rd.update_histories(ADDRESS, DATA, out="/nowhere"),
    "update_histories out": lambda: rd.update_histories("/nowhere", DATA, out=ADDRESS),
    "add_items": lambda: rd.add_items(ADDRESS, TABLE, out="/nowhere"),
    "add_items out": lambda: rd.add_items("/nowhere", TABLE, out=ADDRESS),
    "augment": lambda: rd.augment(DATA, "diffuasr", run=ADDRESS),
    "push": lambda: rd.push(ADDRESS, "ann/shop"),
    "load": lambda: rd.Recommender.load(ADDRESS),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.filterwarnings("ignore::rediffuse.errors.RediffuseWarning")
def test_every_function_refuses_what_it_does_not_know(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RediffuseError, match=r"unknown://bucket/x, and unknown:// is not a known scheme"):
        call()
    assert not list(tmp_path.iterdir())


def test_addresses_are_recognised_as_text_and_as_paths():
    for value in ("s3://bucket/a b/*.parquet", Path("s3://bucket/a b/*.parquet"), "s3:\\bucket\\a b\\*.parquet"):
        assert address_of(value) == "s3://bucket/a b/*.parquet"
    for value in ("C:/data", "C:\\data", Path("data/s3:/x"), "/s3:/x", "a:b", "2024-01-01T10:00/x", None, 5, b"s3://b"):
        assert address_of(value) is None
    with pytest.raises(ConfigError, match=r"Write /data/x$"):
        refuse_address("out", "file:///data/x")


def test_a_folder_with_such_a_name_is_read_by_its_path_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file:" / "rows.csv"
    file.parent.mkdir()
    TABLE.write_csv(file)
    assert rd.read_interactions(file).num_interactions == 2
    with pytest.raises(ConfigError):
        rd.read_interactions("file:/rows.csv")
