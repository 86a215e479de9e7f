"""Notebooks as pages: every ``.ipynb`` becomes Markdown with its stored outputs; no script is needed.

A hook of MkDocs (``hooks`` in mkdocs.yml). Nothing is run here; tests/test_notebooks.py runs them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        assert file.abs_src_path is not None
        page = as_markdown(Path(file.abs_src_path))
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=page))
    return files


def as_markdown(path: Path) -> str:
    """The page of a notebook: its cells and their stored outputs, and a link to the file below the title."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = [part for cell in cells for part in _cell(cell)]
    link = f'<a href="{path.name}" download>This page as a notebook</a>; the outputs are those that are stored in it.'
    return "\n\n".join([parts[0], link, *parts[1:]]) + "\n"


def _cell(cell: dict[str, Any]) -> list[str]:
    source = _text(cell["source"]).strip()
    if cell["cell_type"] == "markdown":
        return [source]
    if cell["cell_type"] != "code" or not source:
        return []
    shown = [] if "hide-input" in cell["metadata"].get("tags", []) else [_fenced("python", source, "input")]
    return shown + [part for output in cell["outputs"] if (part := _output(output))]


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return _fenced("text", _text(output["text"]), "output printed")
    data = output.get("data", {})
    if "text/html" in data and "<svg" in _text(data["text/html"]):
        # One line, so that Markdown leaves it alone.
        return f'<div class="output">{"".join(_text(data["text/html"]).splitlines())}</div>'
    return _fenced("text", _text(data["text/plain"]), "output") if "text/plain" in data else ""


def _fenced(language: str, text: str, classes: str) -> str:
    marks = " ".join(f".{name}" for name in (language, *classes.split()))
    return f"``` {{ {marks} }}\n{text.rstrip()}\n```"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to notebooks lead to their pages."""
    return re.sub(r"(\]\([^)\s]+)\.ipynb(#[^)\s]*)?\)", r"\1.md\2)", markdown)
