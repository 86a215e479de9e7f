"""Floors in closed form for the tables of `compare.py`: trains, evaluates, compares and prints them.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.floors --data amazon-beauty --split given

Every floor is there twice. The first learns from the training interactions alone, as the models that are trained by
gradient do. The second (`refitted`) learns from the validation interactions too, after its options are chosen on them.
What is trained already is not trained again, so that a second call with another ``--protocol`` evaluates the same runs.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import polars as pl

import rediffuse as rd
from benchmarks.common import RESULTS
from benchmarks.tables import compare
from benchmarks.tables.variants import FLOORS
from rediffuse.comparison import Comparison
from rediffuse.readers.public_datasets import public_dataset

# Items up to which dense item x item matrices are inverted; EASE has 200 neighbours per item in larger catalogues.
DENSE = 13_000
# Columns of a comparison that hold labels of variants.
LABELS = {"variant", "first", "second", "ablation"}
# Data sets whose interactions are in no order that means anything.
UNORDERED = ("book-crossing-kg", "lastfm-hetrec", "lastfm-kgat-partial", "diffnet-yelp", "recdiff-ciao")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--models", nargs="+", choices=FLOORS, metavar="FLOOR", help="default: all that suit the data")
    parser.add_argument("--runs", type=Path, default=Path("runs/floors"), help="its last name begins the result's")
    parser.add_argument("--metric", default="ndcg@10/unseen", help="chooses options, and pairs are tested on it")
    parser.add_argument("--protocol", help="of the report; default: that of the split")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the result file is written")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.by_name(arguments.split, data)
    folder = arguments.runs / f"{arguments.data}-{split.name}"
    for name in arguments.models or suitable(arguments.data, data):
        compare.train(name, split, folder, 0, minutes=60, epochs=1, metric=arguments.metric)
    stored = compare.report(folder, data, arguments.metric, arguments.protocol, arguments.results, relabelled)
    print(compare.table(stored, arguments.metric.partition("/")[0]))


def suitable(name: str, data: rd.Dataset) -> list[str]:
    """The floors that suit a data set, by its times, its order and the size of its catalogue."""
    dense = data.num_items <= DENSE
    floors = ["popularity", "itemknn", "ease" if dense else "ease-200", "one_hop", "theat"]
    if name in UNORDERED:
        floors.append("heat")
    else:
        floors += ["ease-recent" if dense else "ease-200-recent", "transition", "transition-one-hop"]
        floors += ["slist"] if dense else []
    if data.has_timestamps:
        floors.append("recentpop")
    return [floor + suffix for floor in floors for suffix in ("", "-refit")]


def relabelled(found: Comparison) -> Comparison:
    """The same comparison with the labels of `label`. Each floor has one run, so runs and variants are in one order."""
    names = [Path(run).name.rpartition("-")[0] for run in found.facts["runs"]]
    labels = dict(zip(found.facts["variants"], map(label, names), strict=True))
    tables = {
        name: table.with_columns(pl.col(sorted(LABELS & set(table.columns))).replace(labels))
        for name, table in vars(found).items()
        if isinstance(table, pl.DataFrame)
    }
    renamed = {name: [labels[old] for old in found.facts[name]] for name in ("variants", "refitted")}
    return dataclasses.replace(found, facts=found.facts | renamed, **tables)


def label(name: str) -> str:
    """The model of a floor and what it changes; ", refitted" in place of the option refit."""
    floor = FLOORS[name]
    options = {option: value for option, value in floor.options.items() if option != "refit"}
    words = ", ".join("no diffusion" if option == "diffusion" else f"{option}={options[option]}" for option in options)
    return floor.model + (f" ({words})" if words else "") + (", refitted" if floor.options["refit"] else "")


if __name__ == "__main__":
    main()
