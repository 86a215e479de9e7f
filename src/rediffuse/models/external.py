"""Models from other packages and files: how they are found, what they must have, and how a run names their class.

A model is named by its import path, ``"my_package.module:MyModel"``, or by an entry point that its package registers in
the group ``rediffuse.models``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import re
import sys
import traceback
import warnings
import weakref
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rediffuse.errors import ConfigError, RediffuseWarning, did_you_mean

if TYPE_CHECKING:
    from rediffuse.models.base import Model

GROUP = "rediffuse.models"

# Classes defined in a function, by class path. No import finds them, so they are found in this process only.
_LOCAL: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()


class ClassNotFoundError(ConfigError):
    """The module or the class of an import path does not exist here."""


# --- finding -----------------------------------------------------------------------------------------------


def entry_points() -> dict[str, list[EntryPoint]]:
    """Name -> entry points of installed packages, in the group `GROUP`."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, []).append(entry)
    return found


@functools.lru_cache(maxsize=1)
def _entry_points_on(path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """`entry_points` while ``sys.path`` is ``path``."""
    return entry_points()


def warn_about_namesakes(name: str) -> None:
    """Warn if another package offers a model with the name of a built-in one."""
    for entry in _entry_points_on(tuple(sys.path)).get(name, ()):
        warnings.warn(
            f"{_package(entry)} offers a model {name!r}, which is the name of a built-in model; the built-in one is "
            f"used. For the other, give its import path: {entry.value}",
            RediffuseWarning,
            stacklevel=3,
        )


def by_entry_point(name: str) -> Any:
    """What the entry point ``name`` refers to, or None if there is no such entry point.

    Raises:
        ConfigError: it cannot be imported, has another name, or several packages have one of that name.
    """
    entries = entry_points().get(name)
    if entries is None:
        return None
    paths = {f"{entry.module}:{entry.attr}" for entry in entries}
    if len(paths) > 1:
        offers = " and ".join(sorted(f"{_package(entry)} ({entry.value})" for entry in entries))
        raise ConfigError(
            f"Several packages offer a model {name!r}: {offers}.",
            "Give the import path of the one you mean, or uninstall the others.",
        )
    try:
        found = import_class(paths.pop())
    except ConfigError as error:
        raise ConfigError(
            f"{_package(entries[0])} offers a model {name!r}, but: {error.problem}", error.remedy
        ) from error
    if (own := getattr(found, "name", None)) != name:
        raise ConfigError(
            f"{_package(entries[0])} offers a model {name!r}, but the `name` of {entries[0].value} is {own!r}.",
            "The entry point and the class must have the same name.",
        )
    return found


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "A package without a name"


def import_class(path: str) -> Any:
    """What ``path``, "module:Class", refers to.

    Raises:
        ClassNotFoundError: there is no such module, or it has no such class.
        ConfigError: it is no import path, or the module raises an error when it is imported.
    """
    if path in _LOCAL:
        return _LOCAL[path]
    module, _, name = path.partition(":")
    if "<locals>" in name:
        raise ClassNotFoundError(f"{path} was defined in a function.", how_to_import(path))
    parts = name.split(".")
    if module.endswith(".py") or not all(part.isidentifier() for part in (*module.split("."), *parts)):
        raise ConfigError(
            f"{path!r} is not an import path.", as_import_path(path) or "Write my_package.module:MyModel."
        )
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"Module {module} cannot be imported: {error}.", "Install what it needs.") from error
        raise ClassNotFoundError(f"There is no module {error.name!r}.", how_to_import(path)) from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"Module {module} cannot be imported: {type(error).__name__}: {error}.",
            f"It was raised in {place.filename}, line {place.lineno}.",
        ) from error
    for part in parts:
        if not hasattr(found, part):
            raise ClassNotFoundError(f"Module {module} has no {name!r}.", did_you_mean(name, _classes(module)))
        found = getattr(found, part)
    return found


def _classes(module: str) -> list[str]:
    own = vars(sys.modules[module]).items()
    return [name for name, value in own if isinstance(value, type) and value.__module__ == module]


def as_import_path(model: str) -> str | None:
    """What to write instead of a file name, or of an import path without a colon; None if ``model`` is neither."""
    module, _, name = model.partition(":")
    if module.endswith(".py"):
        return f"Give the module, not the file: {Path(module).stem}:{name or 'MyModel'}"
    if not name and "." in module:
        return f"For a class in a module, write a colon: {':'.join(module.rsplit('.', 1))}"
    return None


# --- checking ----------------------------------------------------------------------------------------------


def checked(kind: object) -> type[Model]:
    """The same, if it is a class that can be trained.

    Raises:
        ConfigError: it is not; says what is missing.
    """
    from rediffuse.config import ModelConfig
    from rediffuse.models.base import Model

    if isinstance(kind, Model):
        name = type(kind).__qualname__
        raise ConfigError(
            f"The model is an instance of {name}.", f"Give the class {name}, and options as config={{...}}."
        )
    if not isinstance(kind, type):
        raise ConfigError(
            f"The model is of type {type(kind).__name__}.",
            "Give a name, an import path (my_package.module:MyModel), or a class.",
        )
    path = class_path(kind)
    if not issubclass(kind, Model):
        raise ConfigError(f"{path} is not a model.", "Derive it from rediffuse.models.Model.")
    if missing := _unimplemented(kind):
        raise ConfigError(f"{path} does not implement {', '.join(missing)}.", "See docs/extend.md.")
    name = vars(kind).get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ConfigError(
            f"{path} has no `name` of its own." if name is None else f"The `name` of {path} is {name!r}.",
            'Give it one of letters, digits, "-" and "_", for example: name = "mymodel"',
        )
    config = kind.Config
    if not isinstance(config, type) or not issubclass(config, ModelConfig):
        raise ConfigError(
            f"The `Config` of {path} is not a subclass of rediffuse.models.ModelConfig.",
            "Derive it from ModelConfig, or leave `Config` out if the model has no options.",
        )
    if required := [option for option, field in config.model_fields.items() if field.is_required()]:
        raise ConfigError(
            f"{', '.join(required)} of {class_path(config)} has no default.", "Give every option of a model a default."
        )
    if "<locals>" in path:
        _LOCAL[path] = kind
    return kind


def _unimplemented(kind: type[Model]) -> list[str]:
    """Methods that ``kind`` lacks."""
    from rediffuse.models.base import Model
    from rediffuse.models.factors import FactorModel
    from rediffuse.models.sequence import SequenceModel

    # A method of a base class, and the methods that call it: a class that replaces one of these may do without.
    needed = [(Model, "score_known", ("score",))]
    if kind.trained_by_gradient:
        needed += [(Model, "batches", ()), (Model, "loss", ())]
    if issubclass(kind, SequenceModel):
        needed += [(SequenceModel, "encode", ("loss",)), (SequenceModel, "represent", ("query_vectors", "score_known"))]
    if issubclass(kind, FactorModel):
        needed += [(FactorModel, "vectors", ("batch_vectors", "answering_vectors", "loss"))]
        needed += [(FactorModel, "fold_in", ("query_vectors", "score_known"))]
    missing = {
        method
        for base, method, callers in needed
        if all(getattr(kind, name) is getattr(base, name) for name in (method, *callers))
    }
    return sorted(missing | getattr(kind, "__abstractmethods__", frozenset()))


# --- naming ------------------------------------------------------------------------------------------------


def class_path(kind: type) -> str:
    """The import path of a class, "module:QualName"."""
    return f"{kind.__module__}:{kind.__qualname__}"


def is_importable(kind: type) -> bool:
    """Whether other processes can import the class: it is not defined in a script, a notebook or a function."""
    if kind.__module__ == "__main__":
        return False
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def describe(kind: type[Model]) -> dict[str, Any]:
    """What a run records of its model: name, class path, and the distribution that has the class, if known."""
    return {"model": kind.name, "class": class_path(kind), "distribution": distribution_of(kind)}


def distribution_of(kind: type) -> dict[str, str] | None:
    """Name and version of the installed distribution that has the class, or None if it is unknown."""
    parts = kind.__module__.split(".")
    if parts[0] == "rediffuse":
        return {"name": "rediffuse", "version": importlib.metadata.version("rediffuse")}
    # Entry points come first: the files of an editable installation are not listed.
    entries = importlib.metadata.entry_points(group=GROUP)
    found = [entry.dist for entry in entries if entry.dist and entry.module.split(".")[0] == parts[0]]
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    inside = "/".join(parts) + ("/__init__.py" if file and Path(file).name == "__init__.py" else ".py")
    if not found and file and (place := Path(file).resolve().as_posix()).endswith(f"/{inside}"):
        installed = importlib.metadata.distributions(path=[place.removesuffix(inside)])
        found = [each for each in installed if any(str(listed) == inside for listed in each.files or ())]
    if len({each.name for each in found}) != 1:
        return None
    return {"name": found[0].name, "version": found[0].version}


def how_to_import(path: str, distribution: dict[str, str] | None = None) -> str:
    """How to make the class at ``path`` importable."""
    module, _, name = path.partition(":")
    if module == "__main__":
        return "It was defined in a script or notebook: define it there again, or move it to a module and train again."
    if "<locals>" in name:
        return "Move it to the top level of a module, and train again."
    if distribution is not None:
        return f"Run: pip install {distribution['name']}=={distribution['version']}"
    top, inner, _ = module.partition(".")
    return f"Run from the folder that holds {f'the package {top}' if inner else f'{top}.py'}, or add it to PYTHONPATH."
