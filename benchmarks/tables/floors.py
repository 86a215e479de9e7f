"""Floors in closed form for the tables of `compare.py`: trains, evaluates, compares and prints them.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.floors --data amazon-beauty --split given

Every floor is there twice. The first learns from the training interactions alone, as the models that are trained by
gradient do. The second (`refitted`) learns from the validation interactions too, after its options are chosen on them.
What is trained already is not trained again, so that a second call with another ``--protocol`` evaluates the same runs.
"""

from __future__ import annotations

import rediffuse as rd
from benchmarks.tables import compare
from benchmarks.tables.labels import relabelled
from benchmarks.tables.variants import FLOORS
from rediffuse.readers.public_datasets import public_dataset

# Items up to which dense item x item matrices are inverted; EASE has 200 neighbours per item in larger catalogues.
DENSE = 13_000
# Data sets whose interactions are in no order that means anything.
UNORDERED = ("book-crossing-kg", "lastfm-hetrec", "lastfm-kgat-partial", "diffnet-yelp", "recdiff-ciao")


def main() -> None:
    parser = compare.parser_of(__doc__, FLOORS, "runs/floors")
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


if __name__ == "__main__":
    main()
