"""Every kind of batch against plain loops: all targets once, the right items, and ranks that share a batch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rediffuse.batching.continuations import Continuations
from rediffuse.batching.matrix import bags, binary_matrix, weighted_matrix
from rediffuse.batching.pairs import PairBatches
from rediffuse.batching.rows import RowBatches
from rediffuse.batching.sequences import SequenceBatches, pad_right
from rediffuse.data.histories import Histories

SETTLED = settings(derandomize=True, deadline=None, max_examples=25)
ITEMS = 30
rows = st.lists(st.lists(st.integers(0, ITEMS - 1), max_size=12), min_size=1, max_size=9)
KINDS = ("causal", "prefix", "rows", "pairs", "continuations")


def make(kind: str, histories: Histories, batch_size: int, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    if kind in ("causal", "prefix"):
        every = kind == "causal"
        return SequenceBatches(histories, max_length=4, batch_size=batch_size, pad=ITEMS, every_position=every, rng=rng)
    if kind == "rows":
        return RowBatches(binary_matrix(histories, ITEMS), batch_size=batch_size, rng=rng)
    if kind == "pairs":
        return PairBatches(histories, num_items=ITEMS, batch_size=batch_size, rng=rng, negatives=2)
    return Continuations(histories, length=2, max_length=3, batch_size=batch_size, anywhere=seed % 2 > 0, rng=rng)


def content(kind: str, batch: Any) -> list[tuple]:
    """The content of a batch, in no order: one entry per target, or per row of rows and continuations."""
    if kind in ("causal", "prefix"):
        return [
            (tuple(batch.items[row, : int(position) + 1].tolist()), int(target))
            for row, position, target in zip(batch.rows, batch.positions, batch.targets, strict=True)
        ]
    if kind == "rows":
        return [tuple(row.nonzero().flatten().tolist()) for row in batch.dense(ITEMS)]
    if kind == "pairs":
        return list(
            zip(batch.users.tolist(), batch.positives.tolist(), map(tuple, batch.negatives.tolist()), strict=True)
        )
    ends = [*batch.offsets.tolist()[1:], len(batch.items)][: len(batch.offsets)]  # a rank may have no row
    following = [tuple(batch.items[a:b].tolist()) for a, b in zip(batch.offsets.tolist(), ends, strict=True)]
    return list(zip(map(tuple, batch.targets.tolist()), following, strict=True))


def entries(kind: str, made: Any, ranks: int = 1) -> list[tuple]:
    return [
        entry for n in range(len(made)) for rank in range(ranks) for entry in content(kind, made.get(n, rank, ranks))
    ]


@pytest.mark.parametrize("kind", KINDS)
@SETTLED
@given(rows, st.integers(1, 9), st.integers(0, 5))
def test_an_epoch_has_every_target_once(kind: str, lists: list[list[int]], batch_size: int, seed: int) -> None:
    histories = Histories.from_lists(lists)
    found = entries(kind, make(kind, histories, batch_size, seed))
    if kind == "causal":
        expected = []
        for row in lists:
            for place in range(1, len(row)):
                # Windows of four tile the inputs from the end; a target sees its window up to itself.
                start = max(0, len(row) - 1 - 4 * -(-(len(row) - place) // 4))
                expected.append((tuple(row[start:place]), row[place]))
    elif kind == "prefix":
        expected = [(tuple(row[max(0, n - 4) : n]), row[n]) for row in lists for n in range(1, len(row))]
    elif kind == "rows":
        expected = [tuple(sorted(set(row))) for row in lists if row]
    elif kind == "pairs":
        assert all(not set(negatives) & set(lists[user]) for user, _, negatives in found)
        found = [entry[:2] for entry in found]
        expected = [(user, item) for user, row in enumerate(lists) for item in row]
    elif seed % 2:  # cut at a random place: each long enough history once
        possible = [{(tuple(r[c - 2 : c]), tuple(r[c : c + 3])) for c in range(2, len(r))} for r in lists if len(r) > 2]
        assert len(found) == len(possible)
        for cuts in sorted(possible, key=len):
            hit = next(entry for entry in found if entry in cuts)
            found.remove(hit)
        expected = []
    else:
        expected = [(tuple(row[:2]), tuple(row[2:5])) for row in lists if len(row) > 2]
    assert Counter(found) == Counter(expected)


@pytest.mark.parametrize("kind", KINDS)
@SETTLED
@given(rows, st.integers(1, 9), st.integers(2, 4), st.integers(0, 5))
def test_ranks_share_every_batch(kind: str, lists: list[list[int]], batch_size: int, ranks: int, seed: int) -> None:
    histories = Histories.from_lists(lists)
    made = make(kind, histories, batch_size, seed)
    for index in range(len(made)):
        whole = Counter(content(kind, made.get(index)))
        slices = [made.get(index, rank, ranks) for rank in range(ranks)]
        assert all(content(kind, own) for own in slices)  # a rank without rows repeats one, with a weight of zero
        slices = [own for own in slices if own.rank_weight]
        assert sum((Counter(content(kind, own)) for own in slices), Counter()) == whole
        assert sum(own.rank_weight for own in slices) == pytest.approx(ranks)
        assert made.get(index).rank_weight == 1
        for own in slices:
            assert own.rank_weight == pytest.approx(len(content(kind, own)) * ranks / whole.total())
    # The same generator gives the same batches, in whatever order they are read.
    again = make(kind, histories, batch_size, seed)
    for index in reversed(range(len(made))):
        assert content(kind, again.get(index)) == content(kind, made.get(index))
        assert again.users(index).tolist() == made.users(index).tolist()


@SETTLED
@given(rows, st.data())
def test_synthetic_interactions_are_inputs_and_not_targets(lists: list[list[int]], data: st.DataObject) -> None:
    """Neither is the first own interaction after them. All others are targets once, after the items before them."""
    generated = [data.draw(st.integers(0, 3)) if row else 0 for row in lists]
    # Interaction n of the flat array has item n, so that a target is its own index.
    lengths = [count + len(row) for count, row in zip(generated, lists, strict=True)]
    flat = np.arange(sum(lengths), dtype=np.int32)
    synthetic = np.concatenate([[True] * n + [False] * (size - n) for n, size in zip(generated, lengths, strict=True)])
    offsets = np.cumsum([0, *lengths])
    histories = Histories(offsets, flat, synthetic=synthetic.astype(bool))
    every = data.draw(st.booleans())
    made = SequenceBatches(
        histories, max_length=4, batch_size=7, pad=999, every_position=every, rng=np.random.default_rng(0)
    )
    expected = [
        int(offsets[u]) + place
        for u, (count, size) in enumerate(zip(generated, lengths, strict=True))
        for place in range(max(1, count + 1 if count else 1), size)
    ]
    batches = [made.get(index) for index in range(len(made))]
    assert sorted(t for batch in batches for t in batch.targets.tolist()) == expected
    for batch in batches:
        assert batch.targets.tolist() == batch.interactions.tolist()
        assert (batch.items[batch.rows, batch.positions] + 1).tolist() == batch.targets.tolist()
        inside = torch.arange(batch.items.shape[1]) < batch.lengths[:, None]
        assert ((batch.items == 999) == ~inside).all()
        if batch.synthetic is not None:
            for row, length, count in zip(batch.items, batch.lengths, batch.synthetic, strict=True):
                marks = synthetic[row[:length].numpy()].tolist()
                assert marks == [True] * int(count) + [False] * (int(length) - int(count))


@SETTLED
@given(rows, st.integers(1, 6), st.data())
def test_padding_sets_and_weights(lists: list[list[int]], length: int, data: st.DataObject) -> None:
    histories = Histories.from_lists(lists)
    padded, lengths = pad_right(histories, length, ITEMS)
    assert lengths.tolist() == [min(len(row), length) for row in lists]
    width = max(1, *map(len, lists)) if max(map(len, lists)) < length else length
    last = [row[-length:] for row in lists]
    assert padded.tolist() == [row + [ITEMS] * (width - len(row)) for row in last]
    assert binary_matrix(histories, ITEMS).toarray().tolist() == [
        [float(item in row) for item in range(ITEMS)] for row in lists
    ]
    weights = np.array([data.draw(st.integers(1, 99)) for row in lists for _ in row], dtype=np.float32)
    expected = np.zeros((len(lists), ITEMS))
    for owner, item, weight in zip(histories.owners, histories.items, weights, strict=True):
        expected[owner, item] = weight  # a later one replaces an earlier one
    assert weighted_matrix(histories, ITEMS, weights).toarray().tolist() == expected.tolist()
    items, offsets, counts = bags(histories, ITEMS, torch.device("cpu"))
    ends = [*offsets.tolist()[1:], len(items)]
    assert [items[a:b].tolist() for a, b in zip(offsets.tolist(), ends, strict=True)] == [sorted(set(r)) for r in lists]
    assert counts.tolist() == [len(set(row)) for row in lists]
