"""Evaluate popularity and friends' popularity under DiffNet's released protocol, with numpy alone.

    REDIFFUSE_DATA=... python -m benchmarks.tables.diffnet_floors

For each user with test items, 1,000 items are drawn with repetition from all 38,342 except the test items; "HR" divides
by min(true, 10). The same follows for the protocol `paper:diffnet`: the 37,378 items with an interaction, without
repetition. Ties are broken at random, and against the true items, as everywhere in Rediffuse. Friends' popularity is
that of the model `friends`: the number of friends, then popularity.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy import sparse

import rediffuse as rd
from benchmarks.common import out_option, write_result
from rediffuse.batching.matrix import binary_matrix
from rediffuse.graphs import social_adjacency
from rediffuse.readers.public_datasets import public_dataset

ITEMS = 38_342  # of the released files; 964 of them have no interaction
K = 10


def rate(
    scores: sparse.csr_array,
    base: np.ndarray,
    truth: list[np.ndarray],
    items: int,
    repeats: bool,
    ties: str,
    seed: int,
) -> tuple[float, float, float]:
    """Return the mean HR@10 and NDCG@10 over users, and the standard error of HR.

    Args:
        scores: (users, known items), to which ``base`` (known items,) is added; other items score zero.
        truth: the test items of each user.
        items: how many items are drawn from.
        repeats: draw with repetition.
        ties: break them at "random" or "against" the true items.
    """
    rng = np.random.default_rng(seed)
    hr, ndcg = [], []
    for row, true in enumerate(truth):
        drawn = rng.integers(items, size=1300)
        drawn = drawn[~np.isin(drawn, true)]
        drawn = (drawn if repeats else np.unique(drawn)[rng.permutation(len(np.unique(drawn)))])[:1000]
        candidates = np.concatenate((drawn, true))
        dense = np.zeros(max(items, len(base)))
        dense[: len(base)] = base
        row_entries = slice(scores.indptr[row], scores.indptr[row + 1])
        dense[scores.indices[row_entries]] += scores.data[row_entries]
        values = dense[candidates]
        is_true = np.arange(len(candidates)) >= len(drawn)
        second = rng.random(len(candidates)) if ties == "random" else ~is_true
        order = np.lexsort((-second if ties == "random" else ~second, -values))
        ranks = np.flatnonzero(is_true[order]) + 1
        top = ranks[ranks <= K]
        most = min(len(true), K)
        hr.append(len(top) / most)
        ndcg.append((1 / np.log2(top + 1)).sum() / (1 / np.log2(np.arange(most) + 2)).sum())
    return float(np.mean(hr)), float(np.mean(ndcg)), float(np.std(hr) / np.sqrt(len(hr)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out_option(parser, "diffnet_floors.json")
    arguments = parser.parse_args()
    data = public_dataset("diffnet-yelp")
    split = rd.split.given(data)
    task, train = split.task("test"), split.training_view().train
    interactions = binary_matrix(train, data.num_items)
    assert data.social is not None
    friends = social_adjacency(data.social.source, data.social.target, data.num_users)
    popular = np.ravel(interactions.sum(axis=0))
    ranked = {
        "popularity": (sparse.csr_array((len(task.users), data.num_items)), popular),
        "friends": (sparse.csr_array(friends[task.users] @ interactions), popular / (popular.max() + 1)),
    }
    truth = [task.truth.row(row) for row in range(len(task.users))]
    rows = []
    for name, (scores, base) in ranked.items():
        for items, repeats in ((ITEMS, True), (data.num_items, False)):
            for ties in ("random", "against"):
                hr, ndcg, error = rate(scores, base, truth, items, repeats, ties, seed=0)
                rows.append({"model": name, "items": items, "repeats": repeats, "ties": ties, "hr": round(hr, 4)})
                rows[-1] |= {"ndcg": round(ndcg, 4), "standard_error_hr": round(error, 4)}
                print(rows[-1], flush=True)
    write_result(arguments.out, {"rows": rows}, precision="fp64", device="cpu")


if __name__ == "__main__":
    main()
