"""One table of docs/benchmarks.md: floors, networks, and networks with the prior, on one data set and split.

    export REDIFFUSE_DATA=...
    OMP_NUM_THREADS=1 python -m benchmarks.tables.table --data amazon-beauty --split given --seeds 0 1 2

It trains what is not trained yet, resumes what was interrupted, evaluates on the test subset, prints the table and
writes the result file. To train two models at once, start it with ``--shard 0/2`` and ``--shard 1/2``, which train
alone, and then without. Networks get ``--minutes`` of one thread at most, early stopping after 8 validations without
improvement, and their default options. A network with the prior is the same network, to the bit, which is not trained
again.
"""

from __future__ import annotations

import rediffuse as rd
from benchmarks.common import rerun
from benchmarks.tables import compare
from benchmarks.tables.floors import suitable
from benchmarks.tables.labels import relabelled
from benchmarks.tables.variants import NETWORKS, VARIANTS, refitted, with_prior
from rediffuse.readers.public_datasets import public_dataset

# The networks of a data set that are compared; those of `ORDERED` where it is not named.
ORDERED = "sequences"
KIND = {
    "diffrec-ml1m-clean": "rows",
    "lastfm-hetrec": "knowledge and friends",
    "lastfm-kgat-partial": "knowledge",
    "book-crossing-kg": "knowledge",
    "diffnet-yelp": "friends",
    "recdiff-ciao": "friends",
}


def main() -> None:
    parser = compare.parser_of(__doc__, VARIANTS, "runs/tables")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="of training, per network")
    parser.add_argument("--shard", help="i/n: train every n-th model, starting with model i, and do not report")
    arguments = parser.parse_args()
    data = public_dataset(arguments.data)
    split = rd.split.by_name(arguments.split, data)
    folder = arguments.runs / f"{arguments.data}-{split.name}"
    wanted = arguments.models or variants(arguments.data, data)
    if len(wanted) == 1 and len(arguments.seeds) == 1:
        compare.train(wanted[0], split, folder, arguments.seeds[0], arguments.minutes, 1000, arguments.metric)
        return
    shard, shards = map(int, (arguments.shard or "0/1").split("/"))
    networks = [name for name in wanted if not made_of(name)]
    for seed in arguments.seeds:
        for name in networks[shard::shards]:
            # What is made of a network follows it in the same shard.
            for trained in (name, *(other for other in wanted if name in made_of(other))):
                if compare.is_due(trained, folder, seed, arguments.minutes):
                    # A process for each run, so that the peak of memory is its own.
                    words = ["--data", arguments.data, "--split", arguments.split, "--models", trained]
                    words += ["--seeds", str(seed), "--minutes", str(arguments.minutes)]
                    rerun(*words, "--runs", str(arguments.runs), "--metric", arguments.metric)
    if arguments.shard is None:
        stored = compare.report(
            folder, data, arguments.metric, arguments.protocol, arguments.results, relabelled, "table"
        )
        print(compare.table(stored, arguments.metric.partition("/")[0]))


def made_of(name: str) -> list[str]:
    """The variants whose runs a variant needs, in all."""
    variant = VARIANTS[name]
    needed = [*variant.phases.values(), *filter(None, [variant.refit_of])]
    return [*needed, *(earlier for other in needed for earlier in made_of(other))]


def variants(name: str, data: rd.Dataset) -> list[str]:
    """The floors and networks of the table of a data set, and its networks with the prior."""
    networks = NETWORKS[KIND.get(name, ORDERED)]
    of_networks = [
        made for network in networks for made in (network, with_prior(network), refitted(with_prior(network)))
    ]
    return suitable(name, data) + [variant for variant in of_networks if variant in VARIANTS]


if __name__ == "__main__":
    main()
