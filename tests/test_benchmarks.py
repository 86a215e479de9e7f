"""The benchmarks can be imported and are listed in their README, and what they write is stamped."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import common
from benchmarks.measure import uncertainty, uncertainty_figure
from benchmarks.reproduce import page as reproductions
from benchmarks.reproduce.rows import ROWS
from benchmarks.tables import page, users
from benchmarks.tables.variants import VARIANTS
from rediffuse.evaluation.metrics import POLICIES, flat_name

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


@pytest.mark.parametrize("path", page.PAGES, ids=lambda path: path.name)
def test_the_tables_of_the_pages_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "<!-- end -->" in text
    assert page.filled(text) == text, "Run python -m benchmarks.tables.page"


def test_the_tables_of_uncertainty_are_those_of_the_result() -> None:
    stored = json.loads((common.RESULTS / "uncertainty-ml-100k.json").read_text(encoding="utf-8"))
    text = (common.ROOT / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    assert not [name for name, found in stored["models"].items() if uncertainty.table(found) not in text]
    figure = (common.ROOT / "docs" / "img" / "uncertainty.svg").read_text(encoding="utf-8")
    assert uncertainty_figure.drawing(stored["models"]["diffurec"]) == figure


def test_every_row_of_the_reproductions_has_its_section_and_its_variants_exist() -> None:
    text = page.PAGES[1].read_text(encoding="utf-8")
    for row in ROWS:
        assert f"<!-- reproduce-{row.name} -->" in text
        assert set(row.variants) <= VARIANTS.keys()


@dataclass
class _Run:
    """What `users.stored` reads of an evaluated run."""

    seed: int
    per_user: pl.DataFrame
    test: dict[str, Any]


def test_means_come_back_from_the_results_per_user() -> None:
    draw = np.random.default_rng(0)
    names = [flat_name(name, policy) for name in users.METRICS for policy in POLICIES]
    runs = []
    for seed in range(3):
        hits = draw.random(50) < 0.2  # most users have no hit, and are not stored
        values = {name: (draw.random(50) * hits).astype(np.float32) for name in names}
        runs.append(_Run(seed, pl.DataFrame(values), {"protocol": {"name": "given", "seen": list(POLICIES)}}))
    frame = users.stored([("model", run) for run in runs])
    assert len(frame) < 2 * 3 * 20
    found = {flat_name(row["metric"], row["policy"]): row for row in users.summary(frame, users=50)}
    assert found.keys() == set(names)
    for name, row in found.items():
        of_seeds = [run.per_user[name].mean() for run in runs]
        assert (row["seeds"], row["mean"]) == (3, pytest.approx(np.mean(of_seeds), rel=1e-6))
        half = 4.302653 * np.std(of_seeds, ddof=1) / np.sqrt(3)  # Student's t with two degrees of freedom
        assert row["high"] - row["mean"] == pytest.approx(half, rel=1e-5)


def _stored_row(folder: Path, value: float, finished: bool = True) -> None:
    """Results of one run of 100 users with ``value`` of each metric."""
    row = ROWS[0]
    names = [flat_name(name, policy) for name in users.METRICS for policy in POLICIES]
    per_user = pl.DataFrame({name: np.full(100, value, np.float32) for name in names})
    run = _Run(0, per_user, {"protocol": {"name": row.protocol, "seen": list(POLICIES)}})
    users.stored([(row.paper, run)]).write_parquet(folder / f"reproduce-{row.name}.parquet")
    stored: dict[str, Any] = {"variant": row.paper, "label": "diffurec (paper)", "seed": 0, "finished": finished}
    stored |= {"minutes": 90.0, "best_epoch": 7, "selected_by": "ndcg@10", "curve": [[7, 0.04]]}
    stored["stopped"] = "Training stopped: all 9 epochs are done."
    stamp = dict.fromkeys(STAMP, "")
    content = {"users": 100, "variants": [stored], "stamp": stamp}
    (folder / f"reproduce-{row.name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("factor", "finished", "expected"),
    [
        (0.98, False, "**reproduced**"),
        (1.02, True, "**reproduced**"),
        (1.1, True, "**above**"),
        (0.9, True, "**below**"),
        (0.9, False, "open"),
    ],
)
def test_a_verdict_is_within_three_per_cent(tmp_path, monkeypatch, factor, finished, expected) -> None:
    row = replace(ROWS[0], published={"ndcg@10": 0.05})
    monkeypatch.setattr(reproductions, "RESULTS", tmp_path)
    assert reproductions.verdict(row) == "not run"
    _stored_row(tmp_path, 0.05 * factor, finished)
    assert reproductions.verdict(row) == expected
    text = reproductions.section(row)
    assert ("| 90.0 | 7 | all epochs |" if finished else "| 90.0 | 7 | time limit |") in text
    assert ("Validation ndcg@10 of seed 0 by epoch: 4.00 (7)." in text) is not finished


def test_the_column_of_defaults_holds_defaults_alone() -> None:
    found = {row.name: reproductions._default(row) for row in ROWS}
    assert found["diffurec-beauty"] == "diffurec"
    assert found["pdrec-book"] is found["diffuasr-beauty"] is found["diffnet-yelp-features"] is None
