"""A comparison as a folder: a page that needs no network, the same as Markdown and JSON, and the tables."""

from __future__ import annotations

import importlib.util
import json
from importlib import resources
from pathlib import Path

from rediffuse.comparison.markdown import DEPENDENT, POLICY_NAMES, SIGNIFICANT, markdown, split_text
from rediffuse.comparison.result import Comparison
from rediffuse.data.cold_users import users_text, without_text
from rediffuse.errors import MissingExtraError, RunError
from rediffuse.files import atomic_write_parquet, atomic_write_text

TABLES = ("summary", "pairs", "slices", "costs", "ablations", "steps", "curves")


def check_folder(out: Path) -> None:
    """Check that a report can be written to ``out``.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        RunError: ``out`` exists and is not an earlier report.
    """
    for package in ("plotly", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "report")
    ours = not out.exists() or (out / "report.json").exists()
    if not ours and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists and is not a report.", "Choose another folder for the report.")


def write_report(comparison: Comparison, out: Path) -> None:
    """Write report.html, report.md, report.json and a Parquet file per table; an earlier report is replaced.

    Raises:
        MissingExtraError, RunError: as `check_folder`.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(comparison.to_dict(), default=str, allow_nan=False)
    atomic_write_text(out / "report.json", content)
    for name in TABLES:
        if len(table := getattr(comparison, name)):
            atomic_write_parquet(out / f"{name}.parquet", table)
        else:  # an earlier report may have had this table
            (out / f"{name}.parquet").unlink(missing_ok=True)
    atomic_write_text(out / "report.md", markdown(comparison))
    atomic_write_text(out / "report.html", page(comparison, content))


def page(comparison: Comparison, content: str) -> str:
    """The page, which contains its script, its data and the plotting library."""
    import jinja2
    from plotly.offline import get_plotlyjs

    here = resources.files("rediffuse.comparison")
    template = (here / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        facts=comparison.facts,
        tested=users_text(comparison.facts["counts"]),
        without=without_text(comparison.facts["counts"]),
        dependent=DEPENDENT,
        policy_names=POLICY_NAMES,
        split=split_text(comparison.facts["split"]),
        significant=SIGNIFICANT,
        # "</script>" in a string would end the script.
        content=content.replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        script=(here / "report.js").read_text(encoding="utf-8"),
    )
