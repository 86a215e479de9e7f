"""Filters as text, ``category == 'shoes' and price < 50``, parsed into the mapping that `item_filters` evaluates.

The syntax is Python's, and Python's parser reads it. Nothing is evaluated: what is not on the list below is refused.
"""

from __future__ import annotations

import ast
from typing import Any

from rediffuse.errors import ConfigError

MAX_TEXT = 10_000
HOW = (
    "Compare columns with values: \"category == 'shoes' and price < 50\", \"brand in ['a', 'b']\", "
    '"not (10 <= price < 50)", "col(\'release year\') > 1990".'
)
_RANGES = {ast.Lt: "lt", ast.LtE: "lte", ast.Gt: "gt", ast.GtE: "gte"}
_MIRRORED = {"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte", "eq": "eq", "ne": "ne"}


def parse_filter(text: str) -> dict[str, Any]:
    """The mapping that a filter in text stands for.

    Columns are names, or ``col('any name')``; values are quoted text, numbers, True and False. There are ``==``,
    ``!=``, ``<``, ``<=``, ``>``, ``>=``, chains of them, ``in [...]``, ``not in [...]``, ``and``, ``or``, ``not`` and
    parentheses. A name alone is a column of truth values.

    Raises:
        ConfigError: the text is something else; the error shows the part.
    """
    if len(text) > MAX_TEXT:
        raise ConfigError(f"The filter has {len(text):,} characters.", f"Write it with at most {MAX_TEXT:,}.")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _node(tree.body)
    except SyntaxError as error:
        where = f" at character {error.offset}" if error.offset else ""
        raise ConfigError(f"The filter {_short(text)} cannot be read: {error.msg}{where}.", HOW) from None
    except (ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"The filter {_short(text)} cannot be read.", HOW) from None


def _node(node: ast.expr) -> dict[str, Any]:
    match node:
        case ast.BoolOp(op, values):
            return {"and" if isinstance(op, ast.And) else "or": [_node(value) for value in values]}
        case ast.UnaryOp(ast.Not(), operand):
            return {"not": _node(operand)}
        case ast.Compare(left, ops, comparators):
            sides = [left, *comparators]
            return _joined([_compared(sides[i], op, sides[i + 1]) for i, op in enumerate(ops)])
        case ast.Name() | ast.Call():
            return {"column": _column(node), "eq": True}
    raise _refused(node, "is no condition")


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The parts of a chain; both ends of a range of one column become one range."""
    first, *others = parts
    for part in others:
        if "range" not in first or "range" not in part or first["column"] != part["column"]:
            return {"and": parts}
        if set(first["range"]) & set(part["range"]):
            return {"and": parts}
        first = {"column": first["column"], "range": first["range"] | part["range"]}
    return first


def _compared(left: ast.expr, op: ast.cmpop, right: ast.expr) -> dict[str, Any]:
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.List | ast.Tuple | ast.Set):
            raise _refused(right, "is no list")
        found: dict[str, Any] = {"column": _column(left), "in": [_value(value) for value in right.elts]}
        return {"not": found} if isinstance(op, ast.NotIn) else found
    name = _RANGES.get(type(op)) or {ast.Eq: "eq", ast.NotEq: "ne"}.get(type(op))
    if name is None:
        raise _refused(left, "is compared with is or is not")
    if not _is_column(left):
        left, right, name = right, left, _MIRRORED[name]
    column, value = _column(left), _value(right)
    if name in ("eq", "ne"):
        found = {"column": column, "eq": value}
        return {"not": found} if name == "ne" else found
    return {"column": column, "range": {name: value}}


def _is_column(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id not in ("true", "false"))


def _column(node: ast.expr) -> str:
    match node:
        case ast.Name(name):
            return name
        case ast.Call(ast.Name("col"), [ast.Constant(str(name))], []):
            return name
    raise _refused(node, "is no column")


def _value(node: ast.expr) -> str | int | float | bool:
    match node:
        case ast.Constant(str() | bool() | int() | float() as value):
            return value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.Name("true" | "false"):
            return node.id == "true"
        case ast.Name(name):
            raise ConfigError(f"In the filter, {name} stands where a value is expected.", f"Quote text: {name!r}.")
    raise _refused(node, "is no value")


def _refused(node: ast.AST, what: str) -> ConfigError:
    return ConfigError(f"In the filter, {_short(ast.unparse(node))} {what}.", HOW)


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
