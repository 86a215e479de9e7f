"""Check the repository itself: conflicts, links, files, make targets, notebooks, versions, readers, paths and words.

    python .ci/repository.py              every file that git tracks or would add
    python .ci/repository.py docs tests   these files and folders only; the words of the glossary in all of them

Prints one line per finding, `file:line: message`, and exits with 1 if there is any. It needs git and nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SELF = ".ci/repository.py"

# Words that the glossary (docs/architecture.md) replaces, and what to write. They are found as whole words in any case,
# and as parts of snake_case and CamelCase names.
WORDS = {
    "people": "users",
    "person": "user",
    "persons": "users",
    "nobody": "no user",
    "somebody": "a user",
    "anybody": "any user",
    "anyone": "any user",
    "everybody": "every user",
    "everyone": "every user",
    "told": "given, passed, reported",
    "walk": "denoising trajectory",
    "walks": "denoising trajectories",
    "walked": "denoised",
    "walking": "denoising",
    "guest": "noised target",
    "fans": "item users",
    "newcomer": "cold user",
    "newcomers": "cold users",
    "room": "package, module, capacity",
    "rooms": "packages, modules",
    "house": "library, architecture",
    "twin": "ablation (no diffusion)",
    "twins": "ablations (no diffusion)",
    "pseudo": "synthetic",
    "written events": "synthetic interactions",
    "augmented events": "synthetic interactions",
    "banned": "excluded",
    "zoo": "public data sets",
    "who asks": "the caller",
    "speak of": "name, describe",
    "word was left": "say what was written, and where",
}
# Where they are looked for when no path is given. CHANGELOG.md names what was renamed.
WORD_PLACES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*", "src/*", "examples/*", ".github/*")

# Documents that are not in the repository; whatever a reader needs of them is written out.
ELSEWHERE = re.compile(r"\bspecifications?\b|\b(?:the|a|project's) brief\b|\b(?:the|in|our) plan\b")
# What a merge leaves where both sides changed.
CONFLICT = re.compile(r"(?:<{7}|>{7}) ")
# Folders of one machine.
MACHINE = re.compile(r"(?<![\w.)])/(?:work|home|root|tmp|opt|Users)/")

# Justified uses: (files, a regular expression, why). What lies inside a match of it is no finding.
ALLOWED = (
    ("*", r"\b[Rr]andom[ -]walks?\b", "walks on a graph"),
    ("*", r"\bwait_for_everyone\b", "Accelerate's API"),
    ("*", r"\b(?:os|ast)\.walk\b|\.walk\(", "Python's API"),
    ("*", r"\b[Pp]seudo-?(?:code|random\w*)\b", "words of computer science"),
    ("*", r"\bOpenAPI [Ss]pecification\b", "a public document"),
    ("src/rediffuse/serving/pages/swagger/*", r"\b[Pp]ersons?\b", "licences of Swagger UI"),
    ("constraints.txt", r"^jsonschema-specifications\b", "a package"),
    ("src/rediffuse/exporting/readme.py", r"pl\.read_parquet\(\"items\.parquet\"\)", "code for users of an export"),
    ("docs/architecture.md", r"\|[^|]*\|\s*$", "the last column of the glossary: what not to write"),
    ("docs/models/diffurec.md", r"\b[Tt]wins?\b", "the nickname is explained there"),
    ("docs/benchmarks.md", r"\b\w+-twin\b", "names of variants in stored results"),
)

LINK = re.compile(r"\]\(<?([^)\s>]+)|^\[[^\]]+\]:\s+(\S+)|\b(?:src|href)=\"([^\"]+)\"")
PUBLIC = re.compile(r"https://(github\.com|raw\.githubusercontent\.com)/([\w.-]+/rediffuse)\b([^\s)>\"'`]*)")
MODULE = re.compile(r"`((?:\w+/)+\w+\.py)`")
NAMED = re.compile(r"(?<![\w./<{}-])(?:\.ci|\.github|benchmarks|docs|examples|src|tests)/(?:[\w.*-]+/)*[\w.*-]*[\w*/]")
NAMED_IN = ("*.md", "src/*", "examples/*", "benchmarks/*.py", ".ci/*", ".github/*", "Makefile", "*.toml", "mkdocs.yml")
# Readers of polars and pyarrow, which take brackets in a path for a pattern.
READER = re.compile(
    r"\b(?:pl|polars)\.(?:read|scan)_\w+\(|\b(?:pq|csv|feather|orc)\.(?:read_\w+|Parquet\w+)\(|\bpyarrow\.(?:parquet|dataset)\b"
)
READERS = "src/rediffuse/table_files.py"
MAKE = re.compile(r"(?<![\w-])make (?:--?[\w-]+ )*([a-z][a-z-]*)(?![\w=])")
MAKE_IN = ("*.md", ".ci/run", ".github/workflows/*")


class Finding(NamedTuple):
    file: str
    line: int
    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


class Project(NamedTuple):
    """What pyproject.toml and the Makefile say."""

    version: str
    readme: str
    source: str
    targets: frozenset[str]

    @classmethod
    def read(cls) -> Project:
        about = tomllib.loads(read("pyproject.toml"))["project"]
        rules = re.findall(r"^([a-z][a-z -]*):(?!=)", read("Makefile"), flags=re.MULTILINE)
        targets = frozenset(target for rule in rules for target in rule.split())
        return cls(about["version"], about["readme"], about["urls"]["Source"], targets)


def main(paths: list[str]) -> int:
    project = Project.read()
    known = listed([])
    found: list[Finding] = []
    for file in listed(paths) if paths else known:
        if file != SELF and _text(file) is not None:
            found += check_file(file, project, known, all_words=bool(paths))
    if not paths:
        found += versions(project)
    for finding in found:
        print(finding)
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(finding.kind for finding in found).most_common())
    print(f"{len(found)} findings: {kinds}" if found else "The repository is in order.")
    return int(bool(found))


def listed(paths: list[str]) -> list[str]:
    """The files below these paths, or all, as paths from the root."""
    for path in paths:
        if not (Path(path).exists() and Path(path).resolve().is_relative_to(ROOT)):
            raise SystemExit(f"{path} does not exist in {ROOT}.")
    named = [str(Path(path).resolve().relative_to(ROOT)) for path in paths]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *named]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"This check needs git and a checkout: {done.stderr.strip()}")
    return sorted(file for file in set(done.stdout.split("\0")) if (ROOT / file).is_file())


def check_file(file: str, project: Project, known: list[str], *, all_words: bool) -> Iterator[Finding]:
    """What is wrong with a text file."""
    text, page = read(file), file.endswith(".md")
    for number, (line, fenced) in enumerate(zip(text.splitlines(), _fenced(file), strict=True), start=1):
        yield from conflicts(file, number, line)
        yield from machine_paths(file, number, line)
        yield from absent_documents(file, number, line)
        yield from public_links(file, number, line, project)
        if all_words or _is_in(file, WORD_PLACES):
            yield from words(file, number, line)
        if _is_in(file, ("src/*.py",)) and file != READERS:
            yield from readers(file, number, line)
        if page and not fenced:
            yield from relative_links(file, number, line, project)
        if _is_in(file, NAMED_IN) and file != "CHANGELOG.md":
            yield from named_files(file, number, line, known)
        if _is_in(file, MAKE_IN) and file != "CHANGELOG.md":
            yield from make_targets(file, number, line if fenced or not page else _code_spans(line), project)
    if file.endswith(".ipynb"):
        yield from notebook(file, text)
    if file == project.readme:
        yield from captured(file, text)


def conflicts(file: str, number: int, line: str) -> Iterator[Finding]:
    if CONFLICT.match(line):
        yield Finding(file, number, "conflicts", "a merge left both sides here")


def machine_paths(file: str, number: int, line: str) -> Iterator[Finding]:
    for match in _matches(MACHINE, file, line):
        yield Finding(file, number, "machine paths", f"{match.group()} is a path of one machine")


def absent_documents(file: str, number: int, line: str) -> Iterator[Finding]:
    for match in _matches(ELSEWHERE, file, line):
        yield Finding(file, number, "absent documents", f"{match.group()!r} is not in the repository")


def words(file: str, number: int, line: str) -> Iterator[Finding]:
    for match in _matches(_words(), file, line):
        instead = WORDS[" ".join(match.group().lower().split())]
        yield Finding(file, number, "words", f"{match.group()} (write: {instead})")


def readers(file: str, number: int, line: str) -> Iterator[Finding]:
    """Named files are opened literally, by one module."""
    for match in _matches(READER, file, line):
        yield Finding(file, number, "readers", f"{match.group()} may take a path for a pattern: use {READERS}")


def public_links(file: str, number: int, line: str, project: Project) -> Iterator[Finding]:
    """Addresses of the public repository are those of pyproject.toml, and their files exist."""
    for match in PUBLIC.finditer(line):
        host, repository, rest = match.groups()
        if not project.source.endswith(f"/{repository}"):
            yield Finding(file, number, "links", f"{host}/{repository} is not {project.source}")
        path = re.match(r"/(?:blob|tree|raw)/[^/]+/(.+)" if host == "github.com" else r"/[^/]+/(.+)", rest)
        if path is not None:
            yield from _leads_to(file, number, match.group(), path.group(1).rstrip(".,"), ROOT)


def relative_links(file: str, number: int, line: str, project: Project) -> Iterator[Finding]:
    """Links between pages lead to files and headings. Package indexes show the README, so there they are absolute."""
    for match in LINK.finditer(re.sub(r"`[^`]*`", "", line)):
        target = next(filter(None, match.groups()))
        if re.match(r"[a-z]+:", target):
            continue
        if file == project.readme and not target.startswith("#"):
            message = f"{target} is a relative link, which package indexes cannot follow; begin with {project.source}/"
            yield Finding(file, number, "links", message)
        else:
            yield from _leads_to(file, number, target, target, (ROOT / file).parent)


def _leads_to(file: str, number: int, shown: str, target: str, folder: Path) -> Iterator[Finding]:
    name, _, anchor = target.partition("#")
    path = (folder / name.partition("?")[0]).resolve() if name else ROOT / file
    if not (path.is_relative_to(ROOT) and path.exists()):
        yield Finding(file, number, "links", f"{shown} does not exist in the repository")
    elif anchor and path.suffix == ".md" and not _has_anchor(path.relative_to(ROOT).as_posix(), anchor):
        yield Finding(file, number, "links", f"{shown}: the page has no heading {anchor!r}")


def named_files(file: str, number: int, line: str, known: list[str]) -> Iterator[Finding]:
    """Files named in passing exist: from the root, or, in code spans, at the end of some path."""
    for match in _matches(NAMED, file, line):
        if not any(ROOT.glob(match.group().rstrip("/"))):
            yield Finding(file, number, "named files", f"{match.group()} does not exist")
    for match in _matches(MODULE, file, line):
        name = match.group(1)
        if not NAMED.match(name) and not any(path.endswith(f"/{name}") for path in known):
            yield Finding(file, number, "named files", f"no file's path ends with {name}")


def make_targets(file: str, number: int, code: str, project: Project) -> Iterator[Finding]:
    for match in _matches(MAKE, file, code):
        if match.group(1) not in project.targets:
            yield Finding(file, number, "make targets", f"the Makefile has no target {match.group(1)!r}")


def notebook(file: str, text: str) -> Iterator[Finding]:
    """Notebooks are stored with their outputs, small, without warnings, and load nothing when they are shown."""
    cells = json.loads(text)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    types = {output["output_type"] for output in outputs}
    messages = {
        "200,000 characters or more": len(text) >= 200_000,
        "fewer than five outputs; run it and store them": len(outputs) < 5,
        "an output that is no result, display or stream": bool(types - {"execute_result", "display_data", "stream"}),
        "an output on stderr": any(output.get("name") == "stderr" for output in outputs),
    }
    yield from (Finding(file, 1, "notebooks", message) for message, wrong in messages.items() if wrong)
    for number, line in enumerate(text.splitlines(), start=1):
        for word in ("site-packages", "<script", "cdn"):
            if word in line:
                yield Finding(file, number, "notebooks", f"{word!r} in a notebook")


def captured(file: str, text: str) -> Iterator[Finding]:
    """Tables of the demo in the README are the output that was captured with its picture."""
    output = ROOT / "docs/img/demo.txt"
    if not output.exists():
        return
    printed = {line.strip() for line in output.read_text(encoding="utf-8").splitlines()}
    for block in re.finditer(r"^```text\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        first = text[: block.start(1)].count("\n") + 1
        for number, line in enumerate(block.group(1).splitlines() if "┃" in block.group(1) else [], start=first):
            if line.strip() not in printed:
                yield Finding(file, number, "captured output", f"not in docs/img/demo.txt: {line.strip()!r}")


def versions(project: Project) -> Iterator[Finding]:
    """Versions that are written twice agree."""
    pin = re.search(r"^ruff==(.*)$", read("constraints.txt"), flags=re.MULTILINE)
    for file, pattern, wanted, of in (
        ("CITATION.cff", r"^version: *[\"']?([^\s\"']+)", project.version, "pyproject.toml"),
        ("src/rediffuse/__init__.py", r"^__version__ = \"([^\"]+)", project.version, "pyproject.toml"),
        (".pre-commit-config.yaml", r"/ruff-pre-commit\n *rev: v(\S+)", pin and pin.group(1), "constraints.txt"),
    ):
        text = read(file)
        match = re.search(pattern, text, flags=re.MULTILINE)
        if match is not None and match.group(1) != wanted:
            line = text[: match.start(1)].count("\n") + 1
            yield Finding(file, line, "versions", f"{match.group(1)} here, {wanted} in {of}")


def read(file: str) -> str:
    text = _text(file)
    if text is None:
        raise SystemExit(f"{file} does not exist, or is not text.")
    return text


@cache
def _text(file: str) -> str | None:
    """The text of a file; None if it is absent, a link or binary."""
    path = ROOT / file
    if path.is_symlink() or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


@cache
def _words() -> re.Pattern[str]:
    words = sorted(WORDS, key=len, reverse=True)
    anywhere = "|".join(word.replace(" ", r"\s+") for word in words)
    capital = "|".join(word.capitalize() for word in words if " " not in word)
    return re.compile(rf"(?<![A-Za-z])(?i:{anywhere})(?![a-z])|(?<=[a-z0-9])(?:{capital})(?![a-z])")


def _is_in(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def _matches(pattern: re.Pattern[str], file: str, line: str) -> Iterator[re.Match[str]]:
    """The matches in a line that lie in no justified use."""
    uses = [use for files, regex, _ in ALLOWED if fnmatch(file, files) for use in re.finditer(regex, line)]
    for match in pattern.finditer(line):
        if not any(use.start() <= match.start() and match.end() <= use.end() for use in uses):
            yield match


def _code_spans(line: str) -> str:
    return " ".join(re.findall(r"`[^`]*`", line))


def _fenced(file: str) -> list[bool]:
    """Whether each line of a page is in a fenced block of code, the fences among them."""
    inside, flags = "", []
    for line in read(file).splitlines():
        fence = re.match(r"\s*(```+|~~~+)", line) if file.endswith(".md") else None
        flags.append(bool(inside or fence))
        if fence and not inside:
            inside = fence.group(1)
        elif fence and fence.group(1).startswith(inside):
            inside = ""
    return flags


@cache
def _anchors(file: str) -> frozenset[str]:
    """Names of the headings of a page, as MkDocs and as GitHub make them."""
    found: set[str] = set()
    for line, in_code in zip(read(file).splitlines(), _fenced(file), strict=True):
        found.update(re.findall(r"(?:\bid=\"|\{ *#)([\w.-]+)", line))
        heading = None if in_code else re.match(r"#{1,6} +(.*)", line)
        if heading:
            title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.group(1))
            plain = re.sub(r"[^\w\s-]", "", title).strip().lower()
            found |= {plain.replace(" ", "-"), re.sub(r"[-\s]+", "-", plain)}
    return frozenset(found)


def _has_anchor(file: str, anchor: str) -> bool:
    if file.startswith("docs/reference/") and anchor.startswith("rediffuse"):
        return True  # made from docstrings; `make docs` checks it
    return bool({anchor, re.sub(r"[_-]\d+$", "", anchor)} & _anchors(file))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
