"""Negatives: items that a user has not interacted with in training."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import Histories

# The keys of histories, and the number of items that they were computed for; dropped with the histories.
_keys: WeakKeyDictionary[Histories, tuple[int, NDArray[np.int64]]] = WeakKeyDictionary()


def interaction_keys(histories: Histories, num_items: int) -> NDArray[np.int64]:
    """The distinct ``user * num_items + item`` of all interactions, ascending; read-only.

    Computed once for the same histories, because every epoch needs them.
    """
    items, keys = _keys.get(histories, (None, None))
    if keys is None or items != num_items:
        keys = _sorted_keys(histories, num_items)
        keys.flags.writeable = False
        _keys[histories] = num_items, keys
    return keys


def _sorted_keys(histories: Histories, num_items: int) -> NDArray[np.int64]:
    found = [np.empty(0, dtype=np.int64)]
    for first, rows in histories.blocks():
        keys = (first + rows.owners) * num_items + rows.items
        keys.sort()
        found.append(keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]])
    return np.concatenate(found)


def draw_negatives(
    users: NDArray[np.int64], positives: NDArray[np.int64], num_items: int, rng: np.random.Generator, tries: int = 20
) -> NDArray[np.int64]:
    """Draw one item per user, uniformly from those that the user has not interacted with.

    An item that the user has interacted with is drawn again, up to ``tries`` times; so a user who has nearly all items
    may get one of those.

    Args:
        users: (n,) user numbers.
        positives: the `interaction_keys` of all users.
        num_items: size of the catalogue.
        rng: source of randomness.
        tries: most draws per user.

    Returns:
        (n,) int64 item numbers.
    """
    drawn = rng.integers(0, num_items, len(users))
    wrong = np.arange(len(users))
    for _ in range(tries):
        keys = users[wrong] * num_items + drawn[wrong]
        place = np.minimum(np.searchsorted(positives, keys), len(positives) - 1)
        wrong = wrong[positives[place] == keys]
        if not len(wrong):
            break
        drawn[wrong] = rng.integers(0, num_items, len(wrong))
    return drawn
