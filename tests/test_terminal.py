"""What others wrote, such as titles and names of folders, reaches the terminal as plain text."""

from __future__ import annotations

import logging
import re
import subprocess
import sys

import polars as pl
import pytest
from typer.testing import CliRunner

import rediffuse as rd
from rediffuse.cli import app
from rediffuse.cli.output import fail, print_note, print_rich, table
from rediffuse.display import Displayed, plain
from rediffuse.errors import RediffuseWarning, RunError
from rediffuse.serving.logs import TextFormatter

TITLES = [
    "[/b]",
    "The film [uncut]",
    "[red]Red[/red]",
    ":cat:",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;owned\x07",
    "a\rb",
    "[",
    "\\[x]",
]
TITLES += ["\x9b2J", "first\nsecond", "‮gnp", "=1+1", "@cmd", "-2", "plain", "\uff1d1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    ids = [f"i{n}" for n in range(len(TITLES))]
    rows = [
        {"user_id": f"u{user}", "item_id": ids[(user + step) % len(ids)], "timestamp": 100 * user + step}
        for user in range(20)
        for step in range(5)
    ]
    titles = pl.DataFrame({"item_id": ids, "title": TITLES})
    data = rd.read_interactions(pl.DataFrame(rows), time="timestamp", items=titles, title="title")
    return rd.train("popularity", rd.split.leave_one_out(data), tmp_path_factory.mktemp("titles") / "run").path


def invoked(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def has_controls(text):
    return re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f‪-‮]", text)


def test_titles_are_printed_as_they_are_without_control_characters(run):
    shown = invoked("recommend", run, "--history", "i0", "-k", "50", "--keep-seen")
    assert not has_controls(shown)
    for title in TITLES:
        assert plain(title) in shown, title


def test_every_cell_heading_title_and_sentence_is_plain(capsys):
    listing = table("of runs/a[1]", "name[b]", "[/i]")
    for title in TITLES:
        listing.add_row(title, f"runs/{title}")
    print_rich(listing, "a [bold]sentence\x1b[0m", "[/b]")
    out = capsys.readouterr().out
    assert not has_controls(out)
    for text in (
        "of runs/a[1]",
        "name[b]",
        "[/i]",
        "a [bold]sentence\N{REPLACEMENT CHARACTER}[0m",
        *map(plain, TITLES),
    ):
        assert text in out


def test_runs_told_apart_by_the_end_of_a_long_path_differ(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    listing = table("Test", "run", "protocol", "ndcg@10")
    for end in "ab":
        listing.add_row("/".join(["experiments"] * 8) + f"/{end}[1]", "leave-one-out", "0.1234")
    print_rich(listing)
    out = "".join(re.findall("│ (\\S*)", capsys.readouterr().out))
    assert "a[1]" in out
    assert "b[1]" in out


def test_errors_and_notes_are_plain(capsys):
    fail(RunError("run[1] \x1b[2J [/b] is damaged.", "Look at [/x]\x07."), as_json=False)
    print_note("[/b] \x1b[31m", RediffuseWarning)
    out = capsys.readouterr().err
    assert not has_controls(out)
    assert "run[1] \N{REPLACEMENT CHARACTER}[2J [/b] is damaged." in out
    assert "Look at [/x]" in out


def test_logs_and_descriptions_are_plain():
    record = logging.LogRecord("rediffuse", logging.INFO, "x", 1, "%s was reloaded", ("\x1b[31mrun",), None)
    assert not has_controls(TextFormatter("%(message)s").format(record))

    class Thing(Displayed):
        def _display(self):
            return "Thing", {"name": "\x1b[31m[/b]"}

    assert not has_controls(repr(Thing()))


def test_an_encoding_that_lacks_characters_is_no_error(run):
    command = [sys.executable, "-m", "rediffuse", "recommend", str(run), "--user", "u1", "-k", "3"]
    done = subprocess.run(
        command, capture_output=True, env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    )
    assert (done.returncode, done.stderr.count(b"Traceback")) == (0, 0)


def test_formulas_are_guarded_only_on_request(run, tmp_path):
    arguments = ["recommend", run, "--user", "u1", "-k", "50", "--keep-seen", "-o"]
    invoked(*arguments, tmp_path / "plain.csv")
    invoked(*arguments, tmp_path / "guarded.csv", "--guard-formulas")
    plain_titles = pl.read_csv(tmp_path / "plain.csv")["title"].to_list()
    guarded = pl.read_csv(tmp_path / "guarded.csv")["title"].to_list()
    assert sorted(plain_titles) == sorted(TITLES)
    for before, after in zip(plain_titles, guarded, strict=True):
        assert after == (f"'{before}" if before[0] in "=+-@\uff1d" else before)
    result = CliRunner().invoke(app, [*map(str, arguments), str(tmp_path / "lists.parquet"), "--guard-formulas"])
    assert "--guard-formulas is for a .csv file" in str(result.exception)
