"""Data out of pickles, without running any code.

A pickle is a small program: it may name any function and call it. This reader does not. It goes through the
instructions with `pickletools`, which only decodes them, and follows those that make plain values. Of what a pickle
names, it knows a few classes of numpy, SciPy and collections, by their names as text: it imports nothing and calls
nothing that the file names. Everything else is refused with the name.
"""

from __future__ import annotations

import math
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.errors import DataError

_REMEDY = "Only data are read from pickles. Ask its author for text, NumPy or Parquet files, or export them yourself."
# What a pickle may make of each of its bytes, in bytes. Data take fewer: a matrix of int32 positions and bools needs 4.
_GROWTH = 16
# Numpy dtypes that are plain data: bool, integers, floats, bytes, text.
_PLAIN = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[SU][0-9]{1,7})")


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """What a pickled SciPy matrix says: the positions and values of its entries, checked against its shape.

    Attributes:
        rows, columns: (entries,) int64, from 0.
        values: (entries,) numbers; an entry may be zero, and a position may occur repeatedly.
        shape: rows and columns of the matrix.
    """

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[Any]
    shape: tuple[int, int]


def read_pickle(path: str | PathLike[str]) -> Any:
    """The content of a pickle: None, bool, int, float, str, bytes, list, tuple, dict, set, numpy array, `SparseMatrix`.

    Numbers of numpy become Python's, a defaultdict and an OrderedDict become dicts.

    Raises:
        DataError: the file cannot be read, is no pickle, or names something that is no data.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file.", "Check the path.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", "Check the path and its permissions.") from None
    machine = _Machine(_GROWTH * len(content))
    try:
        for code, argument, position in pickletools.genops(content):
            machine.position = position or 0
            if code.name == "STOP":
                return machine.result()
            act = _INSTRUCTIONS.get(code.name)
            if act is None:
                raise _RefusedError(f"uses the instruction {code.name}, which is not needed for data")
            act(machine, argument)
    except _RefusedError as error:
        raise DataError(f"{path} {error} (byte {machine.position:,}).", _REMEDY) from None
    except (ValueError, TypeError, LookupError, OverflowError, ArithmeticError, MemoryError):
        problem = f"{path} is not a pickle, or is damaged (byte {machine.position:,})."
        raise DataError(problem, "Get the file again, and compare its size with the original.") from None
    raise DataError(f"{path} ends before the pickle does.", "Get the file again.")


class _RefusedError(Exception):
    """What the pickle does that this reader does not do."""


@dataclass(frozen=True, eq=False)
class _Name:
    """A function or class that the pickle names. It is not looked up; ``make`` stands in for a call of it."""

    module: str
    name: str
    make: Callable[..., Any]


@dataclass(eq=False)
class _Awaited:
    """An array or a SciPy matrix whose content follows.

    Attributes:
        form: "array", or "coo", "csr" or "csc" for a matrix.
        value: the content, once it is known.
    """

    form: str
    value: NDArray[Any] | SparseMatrix | None = None


@dataclass(eq=False)
class _Type:
    """A numpy dtype whose byte order follows."""

    code: str
    order: Literal["<", ">", "=", "|"] = "="

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.code).newbyteorder(self.order)


class _Machine:
    """The stack and the memo of a pickle.

    ``budget`` bounds, in bytes, what calls may read and make: a file of a few megabytes can ask for millions of calls
    about the same long text.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.position = 0

    def result(self) -> Any:
        if len(self.stack) != 1 or self.marks:
            raise ValueError
        return _finished(self.stack[0])

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if self.marks and self.marks[-1] == len(self.stack):
            raise ValueError  # nothing stands above the mark
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        above = self.stack[start:]
        del self.stack[start:]
        return above

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError
        return value

    def spend(self, size: int) -> None:
        self.budget -= size
        if self.budget < 0:
            raise _RefusedError("makes far more data than it holds")

    def remember(self, number: int) -> None:
        self.memo[number] = self.stack[-1]


# --- instructions ------------------------------------------------------------------------------------------


def _number(machine: _Machine, value: Any) -> None:
    if type(value) is int and not -(1 << 63) <= value < 1 << 64:
        raise _RefusedError("holds an integer beyond 64 bits")
    machine.push(value)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(value)


def _text(machine: _Machine, value: Any) -> None:
    machine.push(value)


def _new(kind: type) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(kind())


def _of_mark(make: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make(machine.pop_to_mark()))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.push(tuple(_finished(value) for value in reversed(values)))

    return act


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.top(list).append(_finished(value))


def _extend(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.top(list).extend(map(_finished, values))


def _set_items(machine: _Machine, values: list[Any]) -> None:
    target = machine.top(dict)
    if len(values) % 2:
        raise ValueError
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_atom(key)] = _finished(value)


def _add_items(machine: _Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    machine.top(set).update(map(_atom, values))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise ValueError
    return {_atom(key): _finished(value) for key, value in zip(values[::2], values[1::2], strict=True)}


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_items(machine, [key, value])


def _atom(value: Any) -> Any:
    """A key. Hashes of nested tuples can take for ever, or overflow the stack of C, so keys are single values."""
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    raise _RefusedError(f"has a {type(value).__name__} as a key or a member of a set")


def _pop(machine: _Machine, _: Any) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.stack.pop()


def _drop(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _name(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    _named(machine, module, name)


def _stack_name(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if type(name) is not str or type(module) is not str:
        raise ValueError
    _named(machine, module, name)


def _named(machine: _Machine, module: str, name: str) -> None:
    make = _KNOWN.get((module, name))
    if make is None and module.startswith("scipy.sparse"):
        make = _SPARSE.get(name)
    if make is None:
        raise _RefusedError(f"names {f'{module}.{name}'[:80]!r}, which is no data")
    machine.push(_Name(module, name, make))


def _call(machine: _Machine, _: Any) -> None:
    arguments, made = machine.pop(), machine.pop()
    if type(made) is not _Name or type(arguments) is not tuple:
        raise ValueError
    machine.spend(sum(map(_size, arguments)))
    value = made.make(*arguments)
    machine.spend(_size(value))
    machine.push(value)


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str | bytes | list | tuple | dict | set) else 0


def _build(machine: _Machine, _: Any) -> None:
    state = _finished(machine.pop())
    target = machine.stack[-1]
    if type(target) is _Type:
        _, order, *_ = state
        if order not in ("<", ">", "=", "|"):
            raise ValueError
        target.order = order
    elif type(target) is _Awaited and target.form == "array":
        _, shape, kind, by_columns, content = state
        target.value = _filled(shape, kind, "F" if by_columns else "C", content)
        machine.spend(target.value.nbytes)
    elif type(target) is _Awaited and type(state) is dict:
        target.value = matrix = _sparse(target.form, state)
        machine.spend(matrix.rows.nbytes + matrix.columns.nbytes)
    else:
        raise ValueError


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _number),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE"), _text),
    **dict.fromkeys(("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _text),
    "BYTEARRAY8": lambda machine, value: machine.push(bytes(value)),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "EMPTY_LIST": _new(list),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_DICT": _new(dict),
    "EMPTY_SET": _new(set),
    "LIST": _of_mark(lambda values: list(map(_finished, values))),
    "TUPLE": _of_mark(lambda values: tuple(map(_finished, values))),
    "DICT": _of_mark(_pairs),
    "FROZENSET": _of_mark(lambda values: set(map(_atom, values))),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _extend,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: _set_items(machine, machine.pop_to_mark()),
    "ADDITEMS": _add_items,
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "POP": _pop,
    "POP_MARK": _drop,
    "DUP": lambda machine, _: machine.push(machine.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, number: machine.push(machine.memo[number])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GLOBAL": _name,
    "STACK_GLOBAL": _stack_name,
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
}


# --- what is known by name ---------------------------------------------------------------------------------


def _finished(value: Any) -> Any:
    """A value as others see it."""
    return value.value if type(value) is _Awaited and value.value is not None else value


def _type(code: Any, *_: Any) -> _Type:
    if type(code) is not str or not _PLAIN.fullmatch(code):
        raise _RefusedError("holds an array that is not of numbers or text")
    return _Type(code)


def _scalar(kind: Any, content: Any) -> Any:
    return _filled((), kind, "C", content).item()


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> NDArray[Any]:
    return _filled(shape, kind, order, content)


def _filled(shape: Any, kind: Any, order: str, content: Any) -> NDArray[Any]:
    if type(kind) is not _Type:
        raise _RefusedError("holds an array that is not of numbers or text")
    if type(content) is str:  # Python 2 wrote bytes as text
        content = content.encode("latin-1")
    if type(content) is not bytes or type(shape) is not tuple or order not in ("C", "F"):
        raise ValueError
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise ValueError
    return np.frombuffer(content, dtype=kind.dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _as_bytes(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise ValueError
    return text.encode("latin-1")


def _ordered(pairs: Any = ()) -> dict[Any, Any]:
    return {_atom(key): value for key, value in pairs}


def _members(values: Any = ()) -> set[Any]:
    return set(map(_atom, values))


def _rebuilt(kind: Any, base: Any, state: Any) -> Any:
    """How the first protocols of pickle make an object without calling its class."""
    if type(kind) is not _Name or type(base) is not _Name or state is not None:
        raise ValueError
    return kind.make()


def _sparse(form: str, state: dict[Any, Any]) -> SparseMatrix:
    shape = state["_shape"] if "_shape" in state else state["shape"]
    if type(shape) is not tuple or [type(size) for size in shape] != [int, int]:
        raise ValueError
    if form == "coo":
        row, column = map(_whole, state["coords"] if "coords" in state else (state["row"], state["col"]))
    else:
        starts, column = _whole(state["indptr"]), _whole(state["indices"])
        if len(starts) != shape[form == "csc"] + 1 or starts[0] != 0 or starts[-1] != len(column):
            raise ValueError
        if (starts[1:] < starts[:-1]).any():
            raise ValueError
        row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        if form == "csc":
            row, column = column, row
    values = state["data"]
    if type(values) is not np.ndarray or not row.shape == column.shape == values.shape:
        raise ValueError
    for numbers, size in ((row, shape[0]), (column, shape[1])):
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < size:
            raise ValueError
    return SparseMatrix(row, column, values, shape)


def _whole(numbers: Any) -> NDArray[np.int64]:
    if type(numbers) is not np.ndarray or numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError
    return numbers.astype(np.int64, copy=False)


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _type,
    ("numpy", "ndarray"): lambda *_: _Awaited("array"),
    ("_codecs", "encode"): _as_bytes,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): lambda *_: {},
    ("copy_reg", "_reconstructor"): _rebuilt,
    ("copyreg", "_reconstructor"): _rebuilt,
}
for _module in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_module}.multiarray", "_reconstruct"] = lambda *_: _Awaited("array")
    _KNOWN[f"{_module}.multiarray", "scalar"] = _scalar
    _KNOWN[f"{_module}.numeric", "_frombuffer"] = _from_buffer
for _module in ("builtins", "__builtin__"):
    _KNOWN[_module, "object"] = lambda *_: None
    _KNOWN[_module, "set"] = _KNOWN[_module, "frozenset"] = _members
    _KNOWN[_module, "bytes"] = lambda: b""  # what the first protocols write for no bytes
    _KNOWN[_module, "bytearray"] = lambda content=b"", *_: content
    # Default values of a defaultdict.
    _KNOWN.update(((_module, kind), lambda *_: None) for kind in ("int", "float", "list", "dict", "str", "bool"))
_SPARSE: dict[str, Callable[..., Any]] = {
    f"{form}_{kind}": lambda *_, form=form: _Awaited(form)
    for form in ("coo", "csr", "csc")
    for kind in ("matrix", "array")
}
