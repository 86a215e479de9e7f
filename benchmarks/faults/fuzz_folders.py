"""Load folders that are consistent but wrong: each must give a right answer or one of our errors.

Small runs (of every model) and datasets are changed as a stranger could change them: values, types and keys of JSON,
columns of Parquet files, shapes, types and values of arrays and tensors. Then all checksums are computed again, so that
only the content is wrong. Loading the folder and recommending from it must end in an error of Rediffuse, or in full
lists with finite scores; for a dataset, in a dataset that can be split and trained on.

    python -m benchmarks.faults.fuzz_folders --count 2000 --seed 0

A failure is named by its index: ``--start INDEX --count 1 --keep FOLDER`` keeps its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file

import rediffuse as rd
from benchmarks.common import write_result
from rediffuse import models
from rediffuse.data.loading import load_dataset
from rediffuse.errors import RediffuseError
from rediffuse.files import sha256_file, sha256_json
from rediffuse.runs.run_folder import manifest_text
from rediffuse.testing import synthetic_interactions, train_small

ACCEPTED, REFUSED, FAILED = "accepted", "refused", "failed"
# Seconds and bytes that one folder may take.
SECONDS, MEMORY = 20, 12 << 30
K = 5
# Options that make training short; those that a model does not have are left out.
TINY = {
    **{"embedding_size": 8, "batch_size": 64, "epochs": 1, "blocks": 1, "n": 2},
    **{"generator_epochs": 1, "pretrain_epochs": 1, "classifier": {"epochs": 1}},
}
_VALUES: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 7, 1000, 10**9, 2**31, 2**40, -(2**63), 2**63, 1.5, 1e308, -0.1, float("nan")),
    *("", "x", "../../etc/passwd", "gru4rec", "all", [], [1], [[]], {}, {"a": 1}, [None], "\0", "9" * 400),
]


# --- the folders that are changed --------------------------------------------------------------------------


def make_runs(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Train a small run of each model, and of one with a prior."""
    made: dict[str, Path] = {}
    for name in [*names, "gru4rec-head"]:
        kind, _, prior = name.partition("-")
        known = models.model_class(kind).Config.model_fields
        options = {option: value for option, value in TINY.items() if option in known}
        made[name] = train_small(kind, folder / name, options | ({"prior": prior} if prior else {})).run.path
    return made


def make_dataset(folder: Path) -> Path:
    """A dataset with every kind of file."""
    data = synthetic_interactions(friends=3, knowledge=True)
    frame = pl.DataFrame(
        {
            "user_id": data.user_ids.gather(data.interactions.owners),
            "item_id": data.item_ids.gather(data.interactions.items),
            "timestamp": data.interactions.times,
            "rating": np.ones(data.num_interactions),
        }
    )
    splits = frame.select("user_id", "item_id", "timestamp").with_columns(split=pl.lit("train"))
    ids = data.user_ids
    links = pl.DataFrame({"source": ids[:-1], "target": ids[1:]})
    made = rd.read_interactions(
        frame, time="timestamp", rating="rating", splits=splits, social=links, items=data.items, users=ids.to_frame()
    )
    return made.save(folder / "data")


# --- changes -----------------------------------------------------------------------------------------------


def change_json(rng: random.Random, content: Any) -> str:
    """Change an entry of JSON content somewhere, and say which."""
    where, path = content, []
    while True:
        keys: list[Any] = list(where) if isinstance(where, dict) else list(range(len(where)))
        if not keys:
            return "nothing"
        key = rng.choice(keys)
        path.append(str(key))
        inner = where[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            where = inner
            continue
        if isinstance(where, dict) and rng.random() < 0.2:
            del where[key]
            return f"{'.'.join(path)} removed"
        where[key] = copy.deepcopy(rng.choice(_VALUES))
        return f"{'.'.join(path)} = {str(where[key])[:30]!r}"


_TYPES: list[Any] = [pl.Int8, pl.Int32, pl.UInt64, pl.Float64, pl.String, pl.Boolean, pl.Null, pl.Binary, pl.Date]


def change_table(rng: random.Random, table: pl.DataFrame) -> tuple[pl.DataFrame, str]:
    """Another table: other types, nulls, repeated or missing rows, other numbers."""
    if not table.width:
        return table, "nothing"
    name = rng.choice(table.columns)
    column, kind = table[name], rng.randrange(9)
    if kind == 0:
        try:
            column = column.cast(rng.choice(_TYPES), strict=False)
        except pl.exceptions.PolarsError:  # there is no such cast
            column = pl.Series(name, [None] * len(column))
    elif kind == 1:
        values = column.to_list()
        if values:
            values[rng.randrange(len(values))] = None
        column = pl.Series(name, values, dtype=column.dtype)
    elif kind == 2:
        return table.drop(name), f"{name} dropped"
    elif kind == 3:
        return table.head(rng.choice([0, 1, max(len(table) - 1, 0)])), "rows cut"
    elif kind == 4:
        return pl.concat([table, table.tail(1)]), "a row repeated"
    elif kind == 5 and len(table) > 1:
        values = column.to_list()
        values[0] = values[1]
        column = pl.Series(name, values, dtype=column.dtype)
    elif kind == 6:
        return table.rename({name: "x"}), f"{name} renamed"
    else:
        odd = rng.choice([-1, 10**6, 2**31, 2**40, float("nan"), 1e300])
        values = column.to_list()
        spot = rng.randrange(len(values)) if values else 0
        if values and isinstance(values[spot], list):
            values[spot] = [*values[spot][:-1], odd] if rng.random() < 0.7 else [*values[spot], odd]
        elif values:
            values[spot] = odd
        try:
            column = pl.Series(name, values, strict=False)
        except (pl.exceptions.PolarsError, TypeError, OverflowError):
            column = column.head(0).extend_constant(None, len(column))
    return table.with_columns(column.alias(name)), f"{name}: change {kind}"


def change_array(rng: random.Random, array: np.ndarray) -> tuple[np.ndarray, str]:
    """Another array: another shape, another type, other values."""
    array, kind = array.copy(), rng.randrange(8)
    if kind == 0 and array.ndim:
        return array[: max(len(array) - 1, 0)], "a row less"
    if kind == 1 and array.ndim and len(array):
        return np.concatenate([array, array[-1:]]), "a row more"
    if kind == 2:
        other = rng.choice([np.float64, np.float32, np.int64, np.int32, np.int8, np.bool_, np.uint8])
        with np.errstate(all="ignore"):
            return array.astype(other), f"as {other.__name__}"
    if kind == 3:
        return array.reshape(array.shape[::-1]) if array.ndim > 1 else array[None], "another shape"
    if kind == 4:
        return array[:0] if array.ndim else array[None], "empty"
    if not array.size:
        return np.zeros(3, dtype=array.dtype), "not empty"
    spot = rng.randrange(array.size)
    odd = rng.choice([-1, 10**6, 2**31 - 1, float("nan"), float("inf"), -(2**31)])
    if array.dtype.kind in "iu":
        odd = 7 if odd != odd or abs(odd) == float("inf") else odd
        odd = max(np.iinfo(array.dtype).min, min(np.iinfo(array.dtype).max, int(odd)))
    flat = array.reshape(-1)
    if kind == 5 and array.ndim > 1:
        array[rng.randrange(len(array))] = odd
    elif kind == 6:
        flat[:] = odd
    else:
        flat[spot] = odd
    return array, f"value {odd}"


# --- runs --------------------------------------------------------------------------------------------------


def change_run(rng: random.Random, folder: Path) -> str:
    """Change one file of a run, and sign the run again."""
    files = [path for path in sorted(folder.iterdir()) if path.name in _CHANGED or path.suffix == ".parquet"]
    path = rng.choice([*files, folder / "config.json", folder / "model.safetensors", folder / "model.safetensors"])
    if path.suffix == ".json":
        content = json.loads(path.read_text())
        said = change_json(rng, content)
        path.write_text(json.dumps(content))
    elif path.suffix == ".parquet":
        table, said = change_table(rng, pl.read_parquet(path, glob=False))
        if pl.Object not in table.dtypes:  # no file holds this type
            table.write_parquet(path)
    else:
        tensors = load_file(path)
        name = rng.choice(sorted(tensors))
        if rng.random() < 0.1:
            del tensors[name]
            said = f"{name} removed"
        else:
            array, said = change_array(rng, tensors[name].numpy())
            tensors[name] = torch.from_numpy(np.array(array))
            said = f"{name}: {said}"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    (folder / "manifest.json").write_text(manifest_text({name: sha256_file(folder / name) for name in listed}))
    return f"{path.name}: {said}"


_CHANGED = ("config.json", "model.safetensors")


def use_run(folder: Path) -> None:
    """Load a run and ask it what users ask; full lists or an error of ours."""
    recommender = rd.Recommender.load(folder)
    users = recommender.user_ids.to_list()
    if users:  # a run may be published without them
        lists = recommender.recommend(users=users, k=K, filter_seen=False)
        _check(lists, len(users), recommender)
        _check(recommender.recommend(users=users[:7], k=K), 0, recommender)
    items = recommender.items["item_id"].to_list()
    _check(recommender.recommend(histories=[[], items[:3], items[-1:]], k=K), 0, recommender)
    for ask in (
        lambda: recommender.similar(items[:2], k=3),
        lambda: recommender.explain(items[:2], history=items[2:5]),
    ):
        with contextlib.suppress(RediffuseError):
            ask()
    with contextlib.suppress(RediffuseError):
        rd.evaluate(folder, synthetic_interactions(friends=3, knowledge=True))
        rd.compare([folder])


def _check(lists: Any, users: int, recommender: Any) -> None:
    assert not users or len(lists) == users * min(K, len(recommender.items)), f"{len(lists)} rows for {users} users"
    assert len(lists), "an empty answer"
    assert lists["score"].is_finite().all(), "scores that are no numbers"
    assert not lists["item_id"].null_count(), "items without an id"


# --- datasets ----------------------------------------------------------------------------------------------


def change_dataset(rng: random.Random, folder: Path) -> str:
    """Change one file of a dataset, and sign it again."""
    path = rng.choice([path for path in sorted(folder.iterdir()) if not path.name.startswith(".")])
    manifest = json.loads((folder / "manifest.json").read_text())
    if path.suffix == ".json":
        said = f"manifest: {change_json(rng, manifest)}"
    elif path.suffix == ".parquet":
        table, said = change_table(rng, pl.read_parquet(path, glob=False))
        if pl.Object not in table.dtypes:
            table.write_parquet(path)
    else:
        array, said = change_array(rng, np.load(path))
        np.save(path, array)
    if path.suffix != ".json":
        said = f"{path.name}: {said}"
        known = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        manifest["files"][path.name] = known
    manifest.pop("sha256", None)
    manifest["sha256"] = sha256_json(manifest)
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    return said


def use_dataset(folder: Path) -> None:
    """Load a dataset, and read everything in it."""
    data = load_dataset(folder)
    split = rd.split.leave_one_out(data)
    assert split.training_view() is not None
    data.save(folder.parent / "again")
    _ = data.tables_fingerprint
    repr(data)
    again = load_dataset(folder.parent / "again")
    assert again.num_interactions == data.num_interactions, "other interactions after saving"


# --- the run of the fuzzer ---------------------------------------------------------------------------------


def attempt(
    source: Path, change: Callable[..., str], use: Callable[[Path], None], rng: random.Random, keep: Path | None
):
    """Change a copy of a folder and use it; returns the outcome, what was changed, and what was said."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (keep or Path(temporary)) / source.name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("checkpoints"))
        said = change(rng, folder)
        try:
            signal.alarm(SECONDS)
            use(folder)
        except RediffuseError as error:
            return REFUSED, said, error.problem
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return FAILED, said, "".join(traceback.format_exception(error)[-3:])
        finally:
            signal.alarm(0)
        return ACCEPTED, said, ""


def _hang(*_: Any) -> None:
    raise AssertionError(f"more than {SECONDS} seconds")


def fuzz(
    count: int, seed: int, start: int = 0, names: Iterable[str] | None = None, keep: Path | None = None
) -> tuple[Counter[str], list[dict[str, Any]]]:
    """Try ``count`` changed folders; returns how they ended, and the failures."""
    signal.signal(signal.SIGALRM, _hang)
    outcomes, failures = Counter[str](), []
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runs = make_runs(Path(temporary), names or models.names(installed=False))
        dataset = make_dataset(Path(temporary))
        for folder in runs.values():  # unchanged ones are accepted
            use_run(folder)
        use_dataset(dataset)
        for index in range(start, start + count):
            rng = random.Random(f"{seed}-{index}")
            name = rng.choice([*runs, *["dataset"] * max(1, len(runs) // 4)])
            is_run = name != "dataset"
            source, change, use = (
                (runs[name], change_run, use_run) if is_run else (dataset, change_dataset, use_dataset)
            )
            outcome, said, message = attempt(source, change, use, rng, keep)
            outcomes[outcome] += 1
            if outcome == FAILED:
                failures.append({"index": index, "folder": name, "change": said, "error": message})
    return outcomes, failures


def main() -> None:
    """Run the fuzzer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--models", nargs="*", help="default: all")
    parser.add_argument("--keep", type=Path, help="folder for the changed folder")
    parser.add_argument("--out", type=Path, help="result file; default: none")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    began = time.monotonic()
    outcomes, failures = fuzz(options.count, options.seed, options.start, options.models, options.keep)
    for failure in failures:
        print(f"{failure['index']} {failure['folder']}: {failure['change']}\n{failure['error']}")
    print(dict(outcomes))
    content = {"outcomes": dict(outcomes), "failures": failures, "seconds": round(time.monotonic() - began, 1)}
    if options.out is not None:
        write_result(options.out, content, precision=None, device="cpu")


if __name__ == "__main__":
    main()
