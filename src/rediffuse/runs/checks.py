"""Whether the content of a run folder makes sense: its checksums may hold and its numbers be wrong all the same.

`rediffuse.runs.run_folder.read_run` calls these once, before anything is answered. A wrong size takes no memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from rediffuse.config import ModelConfig
from rediffuse.data.checks import ids_of, lists_of, numbers_of, require, require_keys
from rediffuse.data.histories import Histories
from rediffuse.errors import RediffuseError, RunError
from rediffuse.files import os_error
from rediffuse.models.base import Model
from rediffuse.models.sampling import Sampling
from rediffuse.models.sizes import SMALL, built_within

_TEXT, _MAPPING = (str, type(None)), (dict, type(None))
# What is read of config.json, and the types.
CONFIG: dict[str, Any] = {
    **dict.fromkeys(("config", "data", "split", "training", "resolved"), dict),
    **{"model": str, "class": _TEXT, "distribution": _MAPPING, "preset": _TEXT, "seed": int, "validation": _MAPPING},
    **{f"data.{name}": int for name in ("users", "items", "interactions")},
    **{"data.fingerprint": _TEXT, "data.augmentation": _MAPPING, "data.histories_end": _TEXT},
    **{"split.name": str, "split.params": dict, "split.leak": _TEXT, "training.minutes": (int, float)},
    **dict.fromkeys((f"training.{name}" for name in ("best_epoch", "parameters")), (int, type(None))),
    "training.peak_memory_mib": (int, float, type(None)),
    **{"tracking": _MAPPING, "defaults": _MAPPING, "resolved.settings": _MAPPING, "created": _TEXT},
}
# Those of them that are read without asking whether they are there.
_NULLABLE = (
    *("class", "distribution", "created", "data.fingerprint", "split.leak"),
    *(f"training.{name}" for name in ("best_epoch", "parameters", "peak_memory_mib")),
)
_KNOWLEDGE = ("item_id", "relation", "entity", "other_item", "weight", "kept")
# Users that are scored when a run is loaded.
_PROBED = 4


@contextmanager
def consistent(path: Path) -> Iterator[None]:
    """Turn whatever the content of ``path`` makes go wrong into an error that names it.

    Raises:
        RunError: in place of all errors but ours and those of the system.
    """
    try:
        yield
    except (RediffuseError, OSError):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        if isinstance(error, Exception) and (cause := os_error(error)):
            raise cause from error
        lines = str(error).strip().splitlines()
        said = lines[0].rstrip(".") if lines else "no message"
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise RunError(
            f"{path} is not sound, though its checksum holds: {kind}{said}.", "Restore it from a copy, or train again."
        ) from error


def check_config(config: Any) -> None:
    """Check the content of config.json: that what is read later is there, with the right types. Entries that may be
    null and are missing become null."""
    require_keys(config, CONFIG)
    for name in _NULLABLE:
        *parents, last = name.split(".")
        functools.reduce(dict.__getitem__, parents, config).setdefault(last, None)
    require("preset" in config and "validation" in config, "preset or validation is missing")
    for name in ("users", "items", "interactions"):
        require(config["data"][name] >= 0, f"data.{name} is {config['data'][name]}")


def check_items(items: pl.DataFrame, config: dict[str, Any], item_table: pl.DataFrame | None) -> None:
    """Check the tables of items."""
    ids = ids_of(items, "item_id")
    require(
        len(ids) == config["data"]["items"],
        f"there are {len(ids):,} items, and {config['data']['items']:,} in config.json",
    )
    numbers_of(items["train_count"], "train_count", 1 << 31)
    title = items["title"].dtype if "title" in items.columns else pl.String
    require(title == pl.String, f"titles are {title}, not text")
    if item_table is not None:
        require(ids_of(item_table, "item_id").equals(ids), "the item table is of other items")


def read_histories(users: pl.DataFrame, num_users: int, num_items: int) -> tuple[Histories, NDArray[np.bool_] | None]:
    """The histories in users.parquet, and which interactions the split held out; None: none.

    Args:
        users: the table.
        num_users, num_items: users that the model was trained on, and items.
    """
    count = len(ids_of(users, "user_id"))  # a run that was published without its users has none
    require(not count or count >= num_users, f"there are {count:,} users, and the model has {num_users:,}")
    lengths = users["history"].list.len().to_numpy().astype(np.int64)
    items = numbers_of(lists_of(users, "history"), "history", num_items)
    offsets = np.concatenate(([0], lengths.cumsum()))
    times = lists_of(users, "times", lengths).to_numpy() if "times" in users.columns else None
    require(times is None or (times.dtype.kind in "if" and np.isfinite(times).all()), "times are no numbers")
    histories = Histories(offsets, items, times)
    if "synthetic" in users.columns:
        synthetic = numbers_of(users["synthetic"], "synthetic", 1 << 31)
        require((synthetic <= lengths).all(), "there are more synthetic interactions than interactions")
        # They precede a user's own interactions.
        synthetic = histories.positions < np.repeat(synthetic, lengths)
        histories = Histories(offsets, items, times, synthetic=synthetic)
    held_out = lists_of(users, "held_out", lengths).to_numpy() if "held_out" in users.columns else None
    require(held_out is None or held_out.dtype == np.bool_, "held_out is not true and false")
    return histories, held_out


def build_model(path: Path, kind: type[Model], options: ModelConfig, num_items: int, num_users: int) -> Model:
    """A new model for the weights in a file, whose shapes are compared before those of a wrong size take memory."""
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    stored = sum(8 * math.prod(shape) for shape in found.values())
    model = built_within(SMALL + 2 * stored, kind, options, num_items, num_users)
    if model is not None:
        _compare_shapes(found, model)
        return model
    try:
        # Without memory.
        with torch.device("meta"):
            model = kind(options, num_items, num_users)
    except RediffuseError:
        raise
    except Exception:
        if kind.__module__.startswith("rediffuse."):
            raise
    else:  # a class of others may need memory in its constructor
        _compare_shapes(found, model)
    return kind(options, num_items, num_users)


def _compare_shapes(found: dict[str, tuple[int, ...]], model: Model) -> None:
    for name, tensor in model.state_dict().items():
        if name not in found or not tensor.numel():  # sized by the file
            continue
        require(found[name] == tuple(tensor.shape), f"{name} has the shape {found[name]}, not {tuple(tensor.shape)}")


def check_values(model: Model, tensors: dict[str, Tensor]) -> None:
    """Check that weights are numbers, and of types that fit those of the model without loss of whole numbers."""
    own = model.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            # A sum is cheap, and not finite if any value is not.
            finite = torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all()
            require(finite, f"{name} holds values that are no numbers (NaN or infinite)")
        if (wanted := own[name].dtype) != tensor.dtype:
            fits = tensor.is_floating_point() and own[name].is_floating_point()
            fits = fits or torch.promote_types(tensor.dtype, wanted) == wanted
            require(fits, f"{name} is {tensor.dtype}, not {wanted}")


def check_scores(model: Model, histories: Histories, num_users: int) -> None:
    """Score a few users and an empty history: what the checks above cannot see goes wrong here, not in an answer."""
    if not model.num_items:
        return
    users = np.flatnonzero(histories.lengths)[:_PROBED]
    empty = np.flatnonzero(histories.lengths == 0)[:1]
    chosen = np.concatenate((users, empty))
    if len(chosen):
        rows, numbers = histories.take(chosen), np.where(chosen < num_users, chosen, -1)
    else:
        times = np.zeros(1, dtype=np.int64) if model.reads_times else None
        rows, numbers = Histories(np.asarray([0, 0, 1]), np.zeros(1, dtype=np.int32), times), np.asarray([-1, -1])
    scores = model.score(rows, users=numbers, sampling=Sampling(0))
    require(scores.shape == (len(rows), model.num_items), f"scores have the shape {tuple(scores.shape)}")
    require(not torch.isnan(scores).any(), "its scores are not numbers (NaN)")


def check_knowledge(edges: pl.DataFrame, items: pl.DataFrame) -> None:
    """Check the table of the knowledge graph that explanations read."""
    missing = [name for name in _KNOWLEDGE if name not in edges.columns]
    require(not missing, f"there is no column {', '.join(missing)}")
    for name in ("item_id", "other_item"):
        require(edges[name].dtype in (items["item_id"].dtype, pl.Null), f"{name} is {edges[name].dtype}")
    require(edges["weight"].dtype.is_float() and edges["kept"].dtype == pl.Boolean, "weight or kept has another type")
    require(
        edges["relation"].dtype == pl.String and edges["entity"].dtype in (pl.String, pl.Null), "names are not text"
    )
    require(edges["weight"].is_finite().all(), "weight has values that are no numbers")
