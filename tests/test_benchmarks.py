"""The benchmarks can be imported and are listed in their README, and what they write is stamped."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks import common
from benchmarks.measure import uncertainty, uncertainty_figure
from benchmarks.tables import page

SCRIPTS = sorted(path for path in (common.ROOT / "benchmarks").glob("*/*.py") if path.stem != "__init__")
STAMP = {"commit", "date", "command", "precision", "device", "memory_gib", "processor", "cores", "threads", "packages"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_benchmark_can_be_imported(path: Path) -> None:
    module = importlib.import_module(f"benchmarks.{path.parent.name}.{path.stem}")
    assert module.__doc__


def test_the_readme_lists_every_script_and_every_result() -> None:
    readme = (common.ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    wanted = [f"{path.parent.name}/{path.name}" for path in SCRIPTS] + [path.name for path in common.RESULTS.iterdir()]
    assert not [name for name in wanted if f"| `{name}` |" not in readme]


def test_a_result_is_stamped(tmp_path: Path) -> None:
    common.write_result(tmp_path / "new" / "a.json", {"rows": [1]}, precision="bf16", packages=["pytest"])
    found = json.loads((tmp_path / "new" / "a.json").read_text())
    assert found["rows"] == [1]
    assert found["stamp"].keys() >= STAMP
    assert found["stamp"]["precision"] == "bf16"
    assert found["stamp"]["packages"]["pytest"] == pytest.__version__


def test_each_appended_line_is_stamped(tmp_path: Path) -> None:
    for size in (1, 2):
        common.append_result(tmp_path / "a.jsonl", {"size": size}, precision=None, device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["size"] for line in lines] == [1, 2]
    for line in lines:
        assert line["stamp"].keys() >= STAMP
        assert (line["stamp"]["precision"], line["stamp"]["device"]) == (None, "cpu")


def test_a_command_names_no_folder_of_the_machine(tmp_path: Path) -> None:
    words = [
        "--out",
        str(tmp_path / "a.json"),
        f"--runs={tmp_path}",
        str(common.ROOT / "runs/a"),
        "runs/b",
        "--minutes=3",
    ]
    command = common.command_line(words)
    assert str(tmp_path.parent) not in command
    assert str(common.ROOT) not in command
    assert command.endswith(f"--out a.json --runs={tmp_path.name} runs/a runs/b --minutes=3")


def test_the_tables_of_the_page_are_those_of_the_results() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert "<!-- table-" in text
    assert page.filled(text) == text, "Run python -m benchmarks.tables.page"


def test_the_tables_of_uncertainty_are_those_of_the_result() -> None:
    stored = json.loads((common.RESULTS / "uncertainty-ml-100k.json").read_text(encoding="utf-8"))
    text = (common.ROOT / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    assert not [name for name, found in stored["models"].items() if uncertainty.table(found) not in text]
    figure = (common.ROOT / "docs" / "img" / "uncertainty.svg").read_text(encoding="utf-8")
    assert uncertainty_figure.drawing(stored["models"]["diffurec"]) == figure
