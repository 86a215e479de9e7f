"""A YAML file with the line of every key, for errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rediffuse.errors import ConfigError
from rediffuse.yaml_text import parse_yaml, read_text

Key = tuple[str | int, ...]


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """The content of a YAML file that is a mapping; and the line (from 1) of each key in it.

    Raises:
        ConfigError: the file is missing, is not YAML, repeats a key, or is not a mapping.
    """
    content, node = parse_yaml(read_text(path, "The file"), str(path), "Correct it.")
    if node is None or not isinstance(content, dict):
        raise ConfigError(f"{path} is not a mapping.", "Write keys such as data, split and models; see the example.")
    lines: dict[Key, int] = {}
    _collect(node, (), lines)
    return content, lines


def _collect(node: yaml.Node, key: Key, lines: dict[Key, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            own = (*key, str(name.value))
            lines[own] = name.start_mark.line + 1
            _collect(value, own, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            lines[*key, position] = value.start_mark.line + 1
            _collect(value, (*key, position), lines)


def dotted(key: Key) -> str:
    """A key as text: ``models[1].options.epochs``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).removeprefix(".")
