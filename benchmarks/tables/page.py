"""Write the tables of docs/benchmarks.md and docs/reproductions.md from the stored results.

    python -m benchmarks.tables.page

A table stands between ``<!-- NAME -->`` and ``<!-- end -->``, where NAME begins with "table-" or "reproduce-" and names
a result file, or is "reproductions". Accuracy comes from the stored results per user, costs from the result files.
"""

from __future__ import annotations

import json
import re

from benchmarks.common import RESULTS, ROOT
from benchmarks.reproduce import page as reproductions
from benchmarks.reproduce.rows import ROWS
from benchmarks.tables import compare, users
from rediffuse.files import atomic_write_text
from rediffuse.table_files import read_parquet

PAGES = [ROOT / "docs" / name for name in ("benchmarks.md", "reproductions.md")]
_PLACE = re.compile(r"<!-- ((?:table-|reproduce-|reproductions)[\w.-]*) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    for page in PAGES:
        atomic_write_text(page, filled(page.read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """The page with its tables made again."""
    sections = {f"reproduce-{row.name}": row for row in ROWS}

    def content(place: re.Match[str]) -> str:
        name = place[1]
        if name == "reproductions":
            made = reproductions.overview()
        else:
            made = reproductions.section(sections[name]) if name in sections else _table(name)
        return f"<!-- {name} -->\n{made}\n<!-- end -->"

    return _PLACE.sub(content, page)


def _table(name: str) -> str:
    stored = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    stored = users.replaced(stored, read_parquet(RESULTS / f"{name}.parquet"))
    metric = stored["facts"]["selected_by"][0].partition("/")[0]
    hardware = ", ".join(stored["facts"]["hardware"])
    dates = " to ".join(sorted({stored["facts"]["dates"][0], stored["facts"]["dates"][-1]}))
    made = f"{stored['facts']['counts']['users']:,} users tested; {dates}; {hardware}; {stored['stamp']['precision']}."
    return f"{made}\n\n{compare.table(stored, metric)}"


if __name__ == "__main__":
    main()
