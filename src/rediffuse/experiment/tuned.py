"""The search of options within an experiment: an equal budget for every model, on validation data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rediffuse.config import ModelConfig
from rediffuse.data.split import Split
from rediffuse.experiment.planned import PlannedRun
from rediffuse.experiment.sections import TuneSection
from rediffuse.tuning import tune
from rediffuse.tuning.study import read_study


def search(planned: PlannedRun, split: Split, budget: TuneSection, seed: int, *, progress: bool) -> ModelConfig:
    """The options that the search of a model chooses; one that is finished is not repeated.

    Raises:
        RediffuseError: as `rediffuse.tune`.
    """
    assert planned.study is not None
    study = tune(
        planned.kind,
        split,
        planned.study,
        trials=budget.trials,
        max_minutes=budget.minutes,
        config=planned.fixed or None,
        preset=planned.preset,
        seed=seed,
        progress=progress,
    )
    return planned.kind.Config.build(None, study.best_config)  # all that differs from the default, also by the preset


def tuning_facts(study: Path) -> dict[str, Any] | None:
    """What a search has cost, from its folder: ``trials`` (finished), ``minutes``, and ``default_rank``.

    None if it has not begun.
    """
    found = read_study(study) if (study / "study.json").is_file() else {}
    if "states" not in found:
        return None
    finished = sum(found["states"].get(state, 0) for state in ("complete", "pruned", "failed"))
    return {"trials": finished, "minutes": found["minutes"], "default_rank": found["default_rank"]}


def is_spent(facts: dict[str, Any] | None, budget: TuneSection) -> bool:
    """Whether a search has used its budget; ``facts`` are from `tuning_facts`."""
    if facts is None:
        return False
    return facts["trials"] >= budget.trials or (budget.minutes is not None and facts["minutes"] >= budget.minutes)
