"""Results by user number, with and without users who have a near-duplicate: from the runs of `table.py`.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.by_user_number --data amazon-beauty --runs runs/tables

Numbers of users tell something where a file in the order of items was read: then users are numbered by the first of
their items in the file. The command measures how far that is so, what is known of the users of each part of the
numbers, and each model on them. Users are near-duplicates by their interactions before the test. Some models in closed
form are also trained without these users, and tested on the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

import rediffuse as rd
from benchmarks.common import RESULTS, write_result
from benchmarks.tables import compare
from benchmarks.tables.labels import label
from benchmarks.tables.variants import VARIANTS
from rediffuse.data.histories import utc
from rediffuse.data.near_duplicates import near_duplicates
from rediffuse.data.split import Split
from rediffuse.readers.public_datasets import public_dataset
from rediffuse.runs.run_folder import read_config

# Trained in seconds.
RETRAINED = ("popularity", "itemknn", "ease", "slist")
CLOSED = ("popularity", "itemknn", "ease", "one_hop", "theat", "transition", "slist")
NETWORKS = ("lightgcn", "sasrec", "diffurec", "heatrec", "heatrec-ablation", "heatrec-prior")
METRIC = "ndcg@10/unseen"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="given")
    parser.add_argument("--runs", type=Path, default=Path("runs/tables"))
    parser.add_argument("--models", nargs="+", default=[*CLOSED, *NETWORKS], choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--parts", type=int, default=8)
    parser.add_argument("--out", type=Path, help="result file; default: results/by_user_number-DATA.json")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.by_name(arguments.split, data)
    similar = near_duplicates(split.before_test()) > 0
    parts = np.array_split(np.arange(data.num_users), arguments.parts)
    known = pair_known(split)
    rows, precisions = [], set()
    for name in arguments.models:
        places = (arguments.runs / f"{arguments.data}-{split.name}").glob(f"{name}-[0-9]/per_user_test.parquet")
        runs = sorted(place.parent for place in places)
        if not runs:
            print(f"Left out: {name} is not evaluated.")
            continue
        precisions |= {read_config(run)["training"]["precision"] for run in runs}
        values = np.mean([values_of(run, data) for run in runs], axis=0)
        row = {"variant": label(VARIANTS[name]), "seeds": len(runs)} | measured(values, similar, parts)
        row |= {"pair_known": float(np.nanmean(values[known])), "pair_not_known": float(np.nanmean(values[~known]))}
        if name in RETRAINED:
            row["trained_without"] = measured(without(name, split, similar), similar, parts)["others_by_part"]
        rows.append(row)
    facts = {"data": arguments.data, "split": split.name, "metric": METRIC, "near_duplicates": int(similar.sum())}
    facts |= {"numbering": numbering(data), "parts": described(split, similar, known, parts), "rows": rows}
    out = arguments.out or RESULTS / f"by_user_number-{arguments.data}.json"
    write_result(out, facts, precision=", ".join(sorted(precisions)))
    print(tables(facts))


def values_of(run: Path, data: rd.Dataset) -> NDArray[np.float64]:
    """(users,) the metric of each user by the stored evaluation of a run, in per cent; NaN of users without a test."""
    table = pl.read_parquet(run / "per_user_test.parquet", columns=["user_id", METRIC])
    ids = pl.DataFrame({"user_id": data.user_ids})
    found = ids.join(table, on="user_id", how="left", maintain_order="left")[METRIC]
    return 100 * found.fill_null(np.nan).to_numpy()


def without(name: str, split: Split, left_out: NDArray[np.bool_]) -> NDArray[np.float64]:
    """As `values_of`, of a model that is trained and tested without some users; NaN for these."""
    data, kept = split.dataset, np.flatnonzero(~left_out)
    rows = np.repeat(~left_out, data.interactions.lengths)
    smaller = dataclasses.replace(
        data,
        interactions=data.interactions.take(kept),
        user_ids=data.user_ids.gather(kept),
        given={scheme: subset[rows] for scheme, subset in data.given.items()},
    )
    with tempfile.TemporaryDirectory() as folder:
        of_others = rd.split.by_name(split.name, smaller, **split.params)
        compare.train(name, of_others, Path(folder), 0, minutes=60, epochs=1, metric=METRIC)
        rd.evaluate(Path(folder) / f"{name}-0", smaller)
        return values_of(Path(folder) / f"{name}-0", data)


def measured(values: NDArray[np.float64], similar: NDArray[np.bool_], parts: list[Any]) -> dict[str, Any]:
    """Means over all users, those with a near-duplicate and the others; and by part, over all and the others."""
    others = np.where(similar, np.nan, values)
    return {
        "all": float(np.nanmean(values)),
        "near_duplicates": float(np.nanmean(values[similar])) if np.isfinite(values[similar]).any() else None,
        "others": float(np.nanmean(others)),
        "by_part": [float(np.nanmean(values[part])) for part in parts],
        "others_by_part": [float(np.nanmean(others[part])) for part in parts],
    }


def numbering(data: rd.Dataset) -> dict[str, Any]:
    """Whether users are numbered as in a file in the order of items, beside the same users in random order.

    In such a file, all users who first occur with an item have consecutive numbers, and no later user has that item.
    """
    found = {}
    order = np.random.default_rng(0).permutation(data.num_users)
    for name, rows in (("as numbered", data.interactions), ("shuffled", data.interactions.take(order))):
        lengths = _runs([set(rows.row(user).tolist()) for user in range(len(rows))])
        found[name] = {
            "runs": len(lengths),
            "longest": max(lengths),
            "users_in_runs_of_2": sum(n for n in lengths if n > 1),
        }
    return found


def _runs(items: list[set[int]]) -> list[int]:
    """Cut users into the longest runs, from the last, that share an item which no user after them has."""
    last = {item: user for user, own in enumerate(items) for item in own}
    lengths, end = [], len(items) - 1
    while end >= 0:
        start = end
        shared = {item for item in items[end] if last[item] == end}
        while start > 0 and (left := shared & items[start - 1]):
            shared, start = left, start - 1
        lengths.append(end - start + 1)
        end = start - 1
    return lengths


def pair_known(split: Split) -> NDArray[np.bool_]:
    """(users,) whether another user has both the tested item and the last one before it, before the test."""
    data, before = split.dataset, split.before_test()
    has = np.ones(len(before.items), dtype=np.float32)
    held = sparse.csr_array((has, before.items, before.offsets), shape=(data.num_users, data.num_items))
    together = (held.T @ held).tocsr()
    task = split.task("test")
    previous, tested = task.histories.items[task.histories.offsets[1:] - 1], task.truth.items[task.truth.offsets[:-1]]
    known = np.zeros(data.num_users, dtype=bool)
    known[task.users] = np.asarray(together[previous, tested]).ravel() > 0
    return known


def described(
    split: Split, similar: NDArray[np.bool_], known: NDArray[np.bool_], parts: list[Any]
) -> list[dict[str, Any]]:
    """The users of each part: their histories before the test, and how many have a near-duplicate or a known pair."""
    data, lengths, found = split.dataset, split.before_test().lengths, []
    for part in parts:
        row: dict[str, Any] = {"first_number": int(part[0]), "users": len(part)}
        row |= {"history": float(lengths[part].mean()), "near_duplicates": int(similar[part].sum())}
        row["pair_known"] = float(known[part].mean())
        if data.has_timestamps:
            row["oldest_item"] = _oldest_item(data, part)
        found.append(row)
    return found


def _oldest_item(data: rd.Dataset, users: NDArray[np.int64]) -> str:
    """When the oldest item of a user was first interacted with, by any user; the median over users."""
    rows = data.interactions
    appeared = np.full(data.num_items, np.inf)
    np.minimum.at(appeared, rows.items, rows.times.astype(np.float64))  # pyright: ignore[reportOptionalMemberAccess]
    return utc(float(np.median(np.minimum.reduceat(appeared[rows.items], rows.offsets[:-1])[users])))[:7]


def tables(facts: dict[str, Any]) -> str:
    """The tables of docs/research_data.md."""
    heads = ["users from number", "history", "near-duplicates", "pair known", "oldest item"]
    shown = [
        row
        for row in facts["rows"]
        if row["variant"] in ("popularity", "ease", "slist", "sasrec", "diffurec", "heatrec")
    ]
    lines = [[*heads, *(row["variant"] for row in shown)]]
    for place, part in enumerate(facts["parts"]):
        cells = [f"{part['first_number']:,}", f"{part['history']:.1f}", f"{part['near_duplicates']:,}"]
        cells += [f"{100 * part['pair_known']:.0f} %", part.get("oldest_item", "")]
        lines.append([*cells, *(f"{row['by_part'][place]:.1f}" for row in shown)])
    parts = len(facts["parts"])
    heads = ["", "all", "pair known", "not known", "near-duplicates", "others", "others: first part", "last part"]
    second = [[*heads, "trained without: first", "last"]]
    for row in facts["rows"]:
        cells = [row[name] for name in ("all", "pair_known", "pair_not_known", "near_duplicates", "others")]
        cells += [row["others_by_part"][n] for n in (0, parts - 1)]
        cells += [row["trained_without"][n] for n in (0, parts - 1)] if "trained_without" in row else [None, None]
        second.append([row["variant"], *("" if cell is None else f"{cell:.2f}" for cell in cells)])
    return "\n\n".join("\n".join(_markdown(table)) for table in (lines, second))


def _markdown(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:])]


if __name__ == "__main__":
    main()
