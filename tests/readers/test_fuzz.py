"""Damaged files, a few of those that `benchmarks/faults/fuzz_readers.py` makes by the thousand."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults import fuzz_readers as fuzz
from rediffuse.readers import columns, tables

COUNT = 150


def test_what_is_not_damaged_is_read(tmp_path: Path) -> None:
    for number, case in enumerate(fuzz.seeds()):
        assert fuzz.attempt(case, tmp_path / str(number), cli=True) == fuzz.ACCEPTED, case.kind


def test_damaged_files_are_read_or_refused_in_our_words(tmp_path: Path) -> None:
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


def test_mutants_depend_on_seed_and_index_alone() -> None:
    one, other = fuzz.seeds(), fuzz.seeds()
    for index in range(40):
        first, again = fuzz.mutant(one, 3, index), fuzz.mutant(other, 3, index)
        assert (first.kind, first.damage, first.options) == (again.kind, again.damage, again.options)
        assert first.files == again.files
        assert fuzz.mutant(one, 4, index).files != first.files


@pytest.mark.parametrize("what", ["times", "ratings"])
def test_what_is_read_otherwise_than_by_python_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    case, real = fuzz.seeds()[0], getattr(columns, what)

    def wrong(column: Any, *options: Any) -> Any:
        found = real(column, *options)
        return found[::-1].copy() if what == "ratings" else dataclasses.replace(found, seconds=found.seconds + 1)

    monkeypatch.setattr(columns, what, wrong)
    with pytest.raises(AssertionError, match="and not"):
        fuzz.attempt(case, tmp_path)


def test_what_is_read_otherwise_in_pieces_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, real = next(case for case in fuzz.seeds() if case.kind == "parquet"), columns.joined
    case.in_chunks = True

    def wrong(column: Any, *arguments: Any) -> Any:
        found = real(column, *arguments)
        return found if tables.PIECE > fuzz.FEW else np.roll(found, 1)

    monkeypatch.setattr(columns, "joined", wrong)
    with pytest.raises(AssertionError):
        fuzz.attempt(case, tmp_path)


def test_the_pieces_of_a_run_add_up(tmp_path: Path) -> None:
    for start, seconds in ((10, 2.0), (0, 1.5), (10, 3.0)):
        piece = {"start": start, "count": 10, "seconds": seconds, "failures": []}
        fuzz._add(tmp_path / "a.json", 4, piece | {"outcomes": {"csv": {"refused": 7, "accepted": 3}}})
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["files"], found["seconds"], found["failures"]) == (20, 4.5, 0)
    assert found["outcomes"] == {"refused": 14, "accepted": 6}
    assert found["seed"] == 4
    assert {"commit", "date", "python", "packages"} <= found["stamp"].keys()
