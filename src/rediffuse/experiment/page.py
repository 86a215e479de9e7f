"""The page of an experiment: the tables of every data set and split, made from results.parquet alone."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from rediffuse.comparison.markdown import (
    DEPENDENT,
    POLICY_NAMES,
    SEEDS_NOTE,
    metric_cells,
    pair_cells,
    protocol_lines,
    sentences,
)
from rediffuse.experiment.energy import ESTIMATE
from rediffuse.experiment.results import Results
from rediffuse.files import atomic_write_text


def write_page(results: Results, path: Path) -> None:
    """Write the page, which needs no network.

    Raises:
        StorageError: it cannot be written.
    """
    import jinja2

    here = resources.files("rediffuse.experiment")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    facts = results.facts
    text = template.render(
        facts=facts,
        settings=[_setting(results, setting) for setting in facts["settings"]],
        energy=ESTIMATE if any(run["energy"] for run in facts["runs"]) else None,
        style=(resources.files("rediffuse.comparison") / "page.css").read_text(encoding="utf-8"),
        dependent=DEPENDENT,
        seeds_note=SEEDS_NOTE,
    )
    atomic_write_text(path, text)


def _setting(results: Results, setting: dict[str, Any]) -> dict[str, Any]:
    comparison = results.comparison(setting)
    policies = setting["facts"]["protocol"]["seen"]
    runs = [run for run in results.facts["runs"] if (run["data"], run["split"]) == (setting["data"], setting["split"])]
    pairs = comparison.pairs.filter(policy=comparison.policy) if len(comparison.pairs) else comparison.pairs
    tables = {POLICY_NAMES[policy].capitalize(): metric_cells(comparison, policy) for policy in policies}
    return {
        "name": f"{setting['data']}, {setting['split']}",
        "report": setting["report"],
        "lines": [line.removeprefix("- ").replace("**", "") for line in protocol_lines(setting["facts"])],
        "targets": "targets" in setting["facts"]["counts"],
        "tables": tables,
        "pairs": pair_cells(pairs) if len(pairs) else None,
        "sentences": sentences(pairs) if len(pairs) else [],
        "costs": cost_cells(runs),
        "notes": [note for run in runs for note in run.get("notes", [])],
    }


def cost_cells(runs: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The heads and the rows of the table of costs; columns that no run has are left out.

    Args:
        runs: the rows of an experiment, or of results.parquet.
    """
    columns = {
        "training, min": lambda run: _number(run["minutes"], ".2f"),
        "tuning, trials": lambda run: _number(_look(run, "tuning", "trials"), "d"),
        "tuning, min": lambda run: _number(_look(run, "tuning", "minutes"), ".2f"),
        "energy, kWh": lambda run: _number(_look(run, "energy", "kwh"), ".3g"),
        "CO2eq, kg": lambda run: _number(_look(run, "energy", "co2_kg"), ".3g"),
        "tuning, kWh": lambda run: _number(_look(run, "tuning", "energy", "kwh"), ".3g"),
        "tuning, CO2eq, kg": lambda run: _number(_look(run, "tuning", "energy", "co2_kg"), ".3g"),
    }
    shown = {head: [value(run) for run in runs] for head, value in columns.items()}
    shown = {head: cells for head, cells in shown.items() if any(cells)}
    rows = [[run["label"], str(run["seed"]), *(cells[n] for cells in shown.values())] for n, run in enumerate(runs)]
    return ["", "seed", *shown], rows


def _look(run: dict[str, Any], *keys: str) -> Any:
    found: Any = run
    for key in keys:
        found = None if found is None else found.get(key)
    return found


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
