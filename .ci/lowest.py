"""Requirements at the lowest versions that pyproject.toml allows, one a line; what has no lower bound is left out.

The core, the extras that users install and the dataframes that they may bring are pinned; tools that only developers
need are not. TORCH takes the place of torch's lower bound, for machines where that version comes without a CPU build.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
users = [line for name, lines in extras.items() if name not in ("dev", "docs") for line in lines]
frames = [line for line in extras["dev"] if line.startswith(("pandas", "pyarrow"))]
for line in dict.fromkeys([*project["dependencies"], *users, *frames]):
    found = re.fullmatch(r"([\w.-]+)(\[[^]]*\])?>=([\w.]+)(\s*;.*)?", line)
    if found is None:
        raise SystemExit(f"{line!r} has no lower bound that could be pinned.")
    name, _, lowest, marker = found.groups()
    if name == "torch":
        if line not in project["dependencies"]:
            continue  # an extra wants a newer one; its tests are left out
        lowest = os.environ.get("TORCH") or lowest
    print(f"{name}=={lowest}{marker or ''}")
