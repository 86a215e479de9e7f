"""The memory that a model takes, before any is taken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rediffuse.config import ModelConfig
from rediffuse.errors import ConfigError, RediffuseError
from rediffuse.memory import free_memory
from rediffuse.models.base import Model

# A trained weight has a gradient and two moments of Adam beside it.
COPIES = 4
_ENDLESS = 1 << 80
# Bytes that a model may take before its size is known; and the functions that its constructor takes memory with.
SMALL = 1 << 26
_SIZED = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}


class _TooLargeError(Exception):
    """A model asks for more memory than it may take."""


class _Bounded(TorchFunctionMode):
    """Counts the bytes of new tensors, and raises `_TooLargeError` before one exceeds the ``limit``."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _SIZED:
            size = kwargs.get("size", args[0] if args and isinstance(args[0], Sequence) else args)
            self.left -= 8 * math.prod(size)
            if self.left < 0:
                raise _TooLargeError
        return func(*args, **kwargs)


def built_within(limit: int, kind: type[Model], options: ModelConfig, num_items: int, num_users: int) -> Model | None:
    """A new model, or None before it takes more than ``limit`` bytes.

    To build it on the device "meta" instead takes no memory, but a second: torch imports what it needs for that.
    """
    with suppress(_TooLargeError), _Bounded(limit):
        return kind(options, num_items, num_users)
    return None


def model_bytes(kind: type[Model], options: ModelConfig, num_items: int, num_users: int) -> int | None:
    """Bytes of a model with what its training keeps beside it, at least: weights that only the data size do not count.

    Returns:
        None if its constructor needs real tensors, as that of a class of others may.
    """
    try:
        with torch.random.fork_rng():
            model = built_within(SMALL, kind, options, num_items, num_users)
        if model is None:
            with torch.device("meta"):
                model = kind(options, num_items, num_users)
    except RediffuseError:
        raise
    except Exception as error:
        return _ENDLESS if "overflow" in str(error) else None
    copies = COPIES if kind.trained_by_gradient else 1
    weights = sum(copies * p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    return weights + _negative_bytes(options, num_users)


def _negative_bytes(options: ModelConfig, num_users: int) -> int:
    """Bytes of the vectors and numbers of the negatives of a batch, at least."""
    negatives, size = getattr(options, "negatives", None), getattr(options, "embedding_size", 1)
    if negatives is None:
        return 0
    shared = getattr(options, "loss", None) in ("sampled_softmax", "sce")  # by all targets of the batch
    return negatives * (1 if shared else min(options.batch_size, num_users)) * (4 * size + 16)


def check_size(kind: type[Model], options: ModelConfig, num_items: int, num_users: int, processes: int = 1) -> None:
    """Refuse a model that does not fit into the free memory. A large one is built without memory, on the device "meta".

    Args:
        kind, options, num_items, num_users: the model.
        processes: those that the items are divided among.

    Raises:
        ConfigError: it does not fit; the error names the option that makes it large.
    """
    held = -(-num_items // processes)
    needed, free = model_bytes(kind, options, held, num_users), free_memory()
    if needed is None or needed <= free:
        return
    smaller: dict[str, int] = {}
    defaults = kind.Config.build()
    for option, value in options.model_dump().items():
        default = getattr(defaults, option)
        if value == default or not _is_size(value):
            continue
        try:
            changed = kind.Config.build(None, options.model_dump() | {option: default})
            smaller[option] = model_bytes(kind, changed, held, num_users) or needed
        except RediffuseError:  # the others do not fit the default
            continue
    size = "more memory than any machine has" if needed >= _ENDLESS else f"{needed / 2**30:,.1f} GiB"
    found = f"and {free / 2**30:,.1f} GiB are free"
    if smaller and min(smaller.values()) < needed:
        option = min(smaller, key=lambda name: smaller[name])
        raise ConfigError(
            f"With {option}={getattr(options, option)!r}, {kind.name} needs {size} for {num_items:,} items and "
            f"{num_users:,} users, {found}.",
            f"Lower {option}; its default is {getattr(defaults, option)!r}.",
        )
    raise ConfigError(
        f"{kind.name} needs {size} for {num_items:,} items and {num_users:,} users, {found}.",
        "Lower embedding_size or other widths, if it has them; or filter rare items with a k-core.",
    )


def _is_size(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_size, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_is_size, value))
    return isinstance(value, int) and not isinstance(value, bool)
