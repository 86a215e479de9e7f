"""Every example runs and prints what it should."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
PRINTS = {
    "noise_schedules": "trunc_lin",
    "recbole_style_diffurec": "ranked first for",
    "train_and_recommend": "uncertainty",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path, capsys):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()
    printed = capsys.readouterr().out
    assert PRINTS[path.stem] in printed
    if path.stem == "recbole_style_diffurec":
        assert int(printed.split("first for ")[1].split("%")[0]) > 80
