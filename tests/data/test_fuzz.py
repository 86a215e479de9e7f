"""Damaged files, a few of those that `benchmarks/fuzz_ingest.py` makes by the thousand."""

from __future__ import annotations

import sys
from collections import Counter
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz_ingest.py"
COUNT = 150


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = spec_from_file_location("fuzz_ingest", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["fuzz_ingest"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_what_is_not_damaged_is_read(fuzz: Any, tmp_path: Path) -> None:
    for number, case in enumerate(fuzz.seeds()):
        assert fuzz.attempt(case, tmp_path / str(number), cli=True) == fuzz.ACCEPTED, case.kind


def test_damaged_files_are_read_or_refused_in_our_words(fuzz: Any, tmp_path: Path) -> None:
    cases = fuzz.seeds()
    outcomes = Counter()
    for index in range(COUNT):
        case = fuzz.mutant(cases, 1, index)
        try:
            outcomes[fuzz.attempt(case, tmp_path / str(index))] += 1
        except Exception as error:
            raise AssertionError(f"mutant {index} of seed 1: {case.kind}, {case.damage}") from error
    assert outcomes[fuzz.ACCEPTED] > 10
    assert outcomes[fuzz.REFUSED] > 50


def test_mutants_depend_on_seed_and_index_alone(fuzz: Any) -> None:
    one, other = fuzz.seeds(), fuzz.seeds()
    for index in range(40):
        first, again = fuzz.mutant(one, 3, index), fuzz.mutant(other, 3, index)
        assert (first.kind, first.damage, first.options) == (again.kind, again.damage, again.options)
        assert first.files == again.files
        assert fuzz.mutant(one, 4, index).files != first.files
