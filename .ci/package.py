"""Check the contents of dist/: the wheel is the package with its data, and the sdist holds sources without results."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
LARGEST = 4 * 2**20  # bytes of an sdist
UNWANTED = ("benchmarks/results/", "runs/", "data/", "site/", ".venv")


def main() -> int:
    wheels, sdists = sorted(DIST.glob("*.whl")), sorted(DIST.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sdists) != 1:
        raise SystemExit(f"dist/ holds {len(wheels)} wheels and {len(sdists)} sdists; one of each is expected.")
    (wheel,), (sdist,) = wheels, sdists
    command = ["git", "ls-files", "-z", "src/rediffuse"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    package = {file.removeprefix("src/") for file in tracked if file}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    wrong = [f"{wheel.name}: lacks {name}" for name in sorted(package - inside)]
    wrong += [f"{wheel.name}: has {name}, which git does not track" for name in sorted(inside - package)]
    wrong += [f"{sdist.name}: lacks src/{name}" for name in sorted(package) if f"src/{name}" not in sources]
    wrong += [f"{sdist.name}: has {name}" for name in sorted(sources) if name.startswith(UNWANTED)]
    if sdist.stat().st_size > LARGEST:
        wrong.append(f"{sdist.name}: {sdist.stat().st_size:,} bytes; at most {LARGEST:,} are expected")
    for line in wrong or [f"{wheel.name}: {len(inside)} files; {sdist.name}: {len(sources)} files."]:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
