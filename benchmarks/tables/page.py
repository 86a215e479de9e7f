"""Write the tables of docs/benchmarks.md from the stored results.

    python -m benchmarks.tables.page

A table stands between ``<!-- table-amazon-beauty-given -->`` and ``<!-- end -->``, where the first names a result file.
"""

from __future__ import annotations

import json
import re

from benchmarks.common import RESULTS, ROOT
from benchmarks.tables import compare
from rediffuse.files import atomic_write_text

PAGE = ROOT / "docs" / "benchmarks.md"
_PLACE = re.compile(r"<!-- (table-[\w.-]+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    atomic_write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


def filled(page: str) -> str:
    """The page with its tables made again."""

    def table(place: re.Match[str]) -> str:
        stored = json.loads((RESULTS / f"{place[1]}.json").read_text(encoding="utf-8"))
        metric = stored["facts"]["selected_by"][0].partition("/")[0]
        hardware = ", ".join(stored["facts"]["hardware"])
        dates = " to ".join(sorted({stored["facts"]["dates"][0], stored["facts"]["dates"][-1]}))
        made = (
            f"{stored['facts']['counts']['users']:,} users tested; {dates}; {hardware}; {stored['stamp']['precision']}."
        )
        return f"<!-- {place[1]} -->\n{made}\n\n{compare.table(stored, metric)}\n<!-- end -->"

    return _PLACE.sub(table, page)


if __name__ == "__main__":
    main()
