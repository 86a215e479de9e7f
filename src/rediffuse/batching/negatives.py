"""Negatives: items that a user has not interacted with in training."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories

# What was touched in histories, and the number of items it was computed for; it goes when they go.
_touched: WeakKeyDictionary[Histories, tuple[int, NDArray[np.int64]]] = WeakKeyDictionary()


def interaction_keys(histories: Histories, num_items: int) -> NDArray[np.int64]:
    """person * num_items + item for all that was touched, sorted, each once; read-only.

    Computed once for the same histories, as every epoch asks for it.
    """
    items, keys = _touched.get(histories, (None, None))
    if keys is None or items != num_items:
        keys = _sorted_keys(histories, num_items)
        keys.flags.writeable = False
        _touched[histories] = num_items, keys
    return keys


def _sorted_keys(histories: Histories, num_items: int) -> NDArray[np.int64]:
    found = [np.empty(0, dtype=np.int64)]
    for first, rows in histories.blocks():
        keys = (first + rows.owners) * num_items + rows.items
        keys.sort()
        found.append(keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]])
    return np.concatenate(found)


def draw_negatives(
    users: NDArray[np.int64], touched: NDArray[np.int64], num_items: int, rng: np.random.Generator, tries: int = 20
) -> NDArray[np.int64]:
    """(n,) for each of ``users`` (n,) an item drawn evenly from those not among ``touched``, see `interaction_keys`.

    Drawn again where it was touched, ``tries`` times: who touched nearly everything may get an item of their own.
    """
    drawn = rng.integers(0, num_items, len(users))
    wrong = np.arange(len(users))
    for _ in range(tries):
        keys = users[wrong] * num_items + drawn[wrong]
        place = np.minimum(np.searchsorted(touched, keys), len(touched) - 1)
        wrong = wrong[touched[place] == keys]
        if not len(wrong):
            break
        drawn[wrong] = rng.integers(0, num_items, len(wrong))
    return drawn
