"""What training sees of the time after the interactions that it is tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import index_type
from rediffuse.data.subsets import TEST, TRAIN

if TYPE_CHECKING:
    from rediffuse.data.dataset import Dataset
    from rediffuse.data.subsets import Split


def share_of_later_training(
    dataset: Dataset, subset: NDArray[np.int8], tested: NDArray[np.bool_] | None = None
) -> float | None:
    """The share of training interactions later than a test interaction, averaged over these; None without times.

    Args:
        tested: (interactions,) which ones are test interactions; None: those of the test subset.
    """
    times = dataset.interactions.times
    chosen = subset == TEST if tested is None else tested
    if not dataset.has_timestamps or times is None or not (chosen.any() and (subset == TRAIN).any()):
        return None
    train = np.sort(times[subset == TRAIN])
    return float(1 - np.searchsorted(train, times[chosen], side="right").mean() / len(train))


def leak_of(split: Split) -> dict[str, Any]:
    """How far training reaches beyond the interactions to predict in the test subset.

    Returns:
        ``own_later``, targets whose user has a later training interaction (None where interactions have no order);
        ``earlier``, targets before the last training interaction of all users; ``median_seconds`` and
        ``longest_seconds``, by how much, over these; ``later_training``, the share of training interactions that are
        later than a target, averaged over targets. The last four are None without timestamps.
    """
    names = ("own_later", "earlier", "median_seconds", "longest_seconds", "later_training")
    found: dict[str, Any] = dict.fromkeys(names)
    interactions, trains, tested = split.dataset.interactions, split.subset == TRAIN, split.is_truth("test")
    times = interactions.times
    if times is None or not (trains.any() and tested.any()):
        return found
    places = np.flatnonzero(tested)
    before = np.zeros(len(trains) + 1, dtype=index_type(len(trains)))
    np.cumsum(trains, out=before[1:])
    ends = interactions.offsets[interactions.owner_of(places) + 1]
    found["own_later"] = int((before[ends] > before[places]).sum())
    if not split.dataset.has_timestamps:
        return found
    ahead = times[trains].max() - times[places]
    ahead = ahead[ahead > 0]
    found |= {"earlier": len(ahead), "later_training": share_of_later_training(split.dataset, split.subset, tested)}
    if len(ahead):
        found |= {"median_seconds": float(np.median(ahead)), "longest_seconds": float(ahead.max())}
    return found
