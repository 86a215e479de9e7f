"""Recommendations of other libraries in an experiment: evaluated once, and compared with the runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rediffuse.comparison.evaluate_lists import evaluate_listed
from rediffuse.comparison.runs import LISTS, evaluation_file, rules_of
from rediffuse.data.split import Split
from rediffuse.errors import DataError
from rediffuse.experiment.datasets import Say
from rediffuse.experiment.list_files import read_list_file
from rediffuse.experiment.planned import Experiment, PlannedLists
from rediffuse.files import sha256_file
from rediffuse.runs.run_folder import MANIFEST, read_manifest


def listed(experiment: Experiment, planned: PlannedLists, split: Split, say: Say) -> dict[str, Any]:
    """Evaluate lists, unless the same file was evaluated on this split before.

    Returns:
        Their metrics, the state, and the notes: what was left out, in sentences.

    Raises:
        ConfigError, DataError: the file has no such lists, or they are too short for what the experiment tests.
    """
    file = experiment.file
    name = file.metric.partition("/")[0]
    source = {"file": str(planned.file), "sha256": sha256_file(planned.file), "columns": planned.columns}
    source |= {"metrics": experiment.metrics}
    found, state = _listed_before(planned.folder, source, split, file.evaluate.protocol), "skipped"
    say(f"{planned.name} {'are evaluated' if found is None else 'were evaluated already'}.")
    if found is None:
        lists, state = read_list_file(planned.file, planned.columns), "evaluated"
        found = evaluate_listed(
            lists,
            split,
            planned.folder,
            label=planned.label,
            seed=planned.seed,
            protocol=file.evaluate.protocol,
            metrics=experiment.metrics,
            source=source,
        )
    if name not in next(iter(found["metrics"].values())):
        raise DataError(
            f"The lists of {planned.label} are too short for {name}, which the experiment tests.",
            "Export more items for each user, or choose another metric.",
        )
    notes = _content(planned.folder)["notes"]
    return {"metrics": found["metrics"], "state": state, "notes": [f"{planned.name}: {note}." for note in notes]}


def _content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / LISTS).read_text(encoding="utf-8"))


def _listed_before(folder: Path, source: dict[str, Any], split: Split, protocol: str | None) -> dict[str, Any] | None:
    """The evaluation of the same lists on the same split with the same metrics; None if there is none."""
    name = evaluation_file("test.json", rules_of(protocol, split))
    if not (folder / MANIFEST).is_file() or not {LISTS, name} <= read_manifest(folder)["files"].keys():
        return None
    config = _content(folder)
    test = json.loads((folder / name).read_text(encoding="utf-8"))
    same = config["lists"] == source and config["split"]["fingerprint"] == split.fingerprint
    return test if same else None
