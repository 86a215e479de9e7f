"""YAML from the command line and from files: what it may hold, and errors for everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rediffuse.addresses import refuse_address
from rediffuse.errors import ConfigError

# What no options come near: the bytes of a file, the depth of its mappings and lists, and its entries, also after
# aliases are written out. PyYAML reads about 10,000 entries per second.
MOST_BYTES, MOST_DEPTH, MOST_ENTRIES = 1 << 18, 32, 10_000


def read_text(path: Path, what: str) -> str:
    """The text of a small regular file.

    Args:
        path: the file.
        what: what it is, for errors: "Config file".

    Raises:
        ConfigError: it is missing, larger than `MOST_BYTES`, no regular file (a pipe might never end) or not UTF-8.
    """
    refuse_address(what, path)
    try:
        if not path.exists():
            raise ConfigError(f"{what} {path} does not exist.", "Check its name; paths are relative to this folder.")
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "a pipe or device"
            raise ConfigError(f"{what} {path} is {kind}, not a file.", "Write the options into a file.")
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{what} {path} cannot be read: {reason}.", "Check its name and permissions.") from None
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{what} {path} has more than {MOST_BYTES:,} bytes.", "Options take a few hundred.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{what} {path} is not UTF-8.", "Save it as UTF-8.") from None


def parse_yaml(text: str, what: str, remedy: str) -> tuple[Any, yaml.Node | None]:
    """The content of YAML text, and its nodes, which know their lines. All keys are text.

    Args:
        text: the YAML.
        what: what it is, for errors.
        remedy: what to do where it is not YAML.

    Raises:
        ConfigError: it is not YAML, nests too deeply, is too long after its aliases are written out, or has a key that
            is no text or stands twice in one mapping.
    """
    try:
        depth = 0
        # Before anything recursive. An entry has at most three events: its key, the begin and the end of its value.
        for number, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if number > 3 * MOST_ENTRIES:
                raise _too_many(what)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MOST_DEPTH:
                raise ConfigError(f"{what} nests more than {MOST_DEPTH} levels deep.", "No option does.")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _check(node, what, {}, [])
        return yaml.safe_load(text), node
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        said = " ".join(str(error).split())
        raise ConfigError(f"{what} is not valid YAML: {said[:300]}", remedy) from None


def _check(node: yaml.Node, what: str, sizes: dict[int, int], parents: list[int]) -> int:
    """The number of entries under a node, with aliases written out."""
    if id(node) in parents:
        raise ConfigError(f"{what} holds an alias of itself.", "Write the value out.")
    if id(node) in sizes:
        return sizes[id(node)]
    parents.append(id(node))
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line, plain = key.start_mark.line + 1, isinstance(key, yaml.ScalarNode)
            if not plain or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                shown = key.value if plain else "a list or mapping"
                raise ConfigError(
                    f"{what} has the key {shown!r} in line {line}, which is no text.",
                    "Write the name of an option, or put the key in quotes.",
                )
            if key.value in lines:
                raise ConfigError(
                    f"{what}, line {line}: {key.value} is given in line {lines[key.value]} already.",
                    "Leave out one of them.",
                )
            lines[key.value] = line
            inner.append(value)
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    size = 1 + sum(_check(value, what, sizes, parents) for value in inner)
    parents.pop()
    if size > MOST_ENTRIES:
        raise _too_many(what)
    sizes[id(node)] = size
    return size


def _too_many(what: str) -> ConfigError:
    return ConfigError(f"{what} has more than {MOST_ENTRIES:,} entries.", "No options do; write aliases out.")
