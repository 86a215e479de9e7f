"""A comparison as a folder: a page that needs no network, the same as Markdown and JSON, and the tables."""

from __future__ import annotations

import importlib.util
import json
import shutil
from importlib import resources
from pathlib import Path

from rediffuse.comparison.markdown import DEPENDENT, POLICY_NAMES, SIGNIFICANT, markdown, split_text
from rediffuse.comparison.result import Comparison
from rediffuse.comparison.slices import ceiling_text
from rediffuse.data.cold_users import users_text, without_text
from rediffuse.errors import MissingExtraError, RunError
from rediffuse.files import atomic_folder, is_leftover, parquet_bytes, staged_files, writing

TABLES = ("summary", "pairs", "slices", "costs", "ablations", "steps", "curves")
REPORT = "report.json"
FILES = {REPORT, "report.md", "report.html", *(f"{name}.parquet" for name in TABLES)}


def check_folder(out: Path) -> None:
    """Check that a report can be written to ``out``.

    Raises:
        MissingExtraError: plotly or jinja2 is not installed.
        RunError: ``out`` exists and is not an earlier report, nor what is left of one that was interrupted.
    """
    for package in ("plotly", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "report")
    if not out.exists() or (out / REPORT).exists():
        return
    if not out.is_dir() or not all(_is_ours(path) for path in out.iterdir()):
        raise RunError(f"{out} exists and is not a report.", "Choose another folder for the report.")


def _is_ours(path: Path) -> bool:
    return path.name in FILES or is_leftover(path)


def write_report(comparison: Comparison, out: Path) -> None:
    """Write report.html, report.md, report.json and a Parquet file per table; an earlier report is replaced as a whole.

    Other files in the folder stay.

    Raises:
        MissingExtraError, RunError: as `check_folder`.
        StorageError: the folder cannot be written; an earlier report is unchanged.
    """
    check_folder(out)
    content = json.dumps(comparison.to_dict(), default=str, allow_nan=False)
    files = {f"{name}.parquet": parquet_bytes(table) for name in TABLES if len(table := getattr(comparison, name))}
    files |= {"report.md": markdown(comparison).encode(), "report.html": page(comparison, content).encode()}
    files[REPORT] = content.encode()
    if out.is_dir() and (out.is_mount() or out.samefile(Path.cwd())):  # such a folder cannot be exchanged
        with staged_files(out, files) as staged:
            for name in files:
                staged.put(name)
            for name in FILES - files.keys():
                (out / name).unlink(missing_ok=True)
        return
    with writing(out), atomic_folder(out) as new:
        for name, written in files.items():
            (new / name).write_bytes(written)
        for path in filter(lambda path: not _is_ours(path), out.iterdir() if out.is_dir() else ()):
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, new / path.name, symlinks=True)
            else:
                shutil.copy2(path, new / path.name, follow_symlinks=False)


def page(comparison: Comparison, content: str) -> str:
    """The page, which contains its script, its data and the plotting library."""
    import jinja2
    from plotly.offline import get_plotlyjs

    here = resources.files("rediffuse.comparison")
    template = (here / "report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        style=(here / "page.css").read_text(encoding="utf-8"),
        facts=comparison.facts,
        tested=users_text(comparison.facts["counts"]),
        without=without_text(comparison.facts["counts"]),
        new_items=ceiling_text(comparison.facts["counts"], comparison.facts["ceiling"]),
        dependent=DEPENDENT,
        policy_names=POLICY_NAMES,
        split=split_text(comparison.facts["split"]),
        significant=SIGNIFICANT,
        # "</script>" in a string would end the script.
        content=content.replace("<", "\\u003c"),
        plotly=get_plotlyjs(),
        script=(here / "report.js").read_text(encoding="utf-8"),
    )
