"""Splits of a dataset into training, validation and test, and the views of it that may be handed on.

Everything that learns receives a `TrainingView`, which holds no reference to the test subset. What is tested is
a `Task`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.data.histories import BLOCK, Histories
from rediffuse.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.data.dataset import Dataset, KnowledgeGraph, SocialGraph

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, -1


@dataclass(frozen=True, eq=False)
class Task:
    """People to recommend to, what is known of them, and what they did next.

    Attributes:
        name: "valid" or "test".
        users: (n,) int64 numbers of the users with at least one event in the subset.
        histories: n rows, the events before the subset; empty for people who are new in it.
        truth: n rows, the events in the subset.
        seen: n rows, the events that the policy "unseen" filters, where they are not ``histories``.
        popularity: (num_items,) int64 training events per item.
    """

    name: str
    users: NDArray[np.int64]
    histories: Histories
    truth: Histories
    popularity: NDArray[np.int64]
    seen: Histories | None = None


@dataclass(frozen=True, eq=False)
class TrainingView:
    """All that training may see. It shares no array with the test subset.

    Attributes:
        train: the training events; one row per user, also for users without any.
        valid: the validation task; without rows where the split has no validation subset.
        item_ids: (num_items,) ids of the whole catalogue.
        social, kg: graphs, if there are any.
        item_table: row i describes item i.
        user_table: row u describes user u.
    """

    train: Histories
    valid: Task
    num_users: int
    num_items: int
    item_ids: pl.Series
    social: SocialGraph | None
    kg: KnowledgeGraph | None
    item_table: pl.DataFrame | None
    user_table: pl.DataFrame | None


@dataclass(frozen=True, eq=False)
class Split:
    """A dataset and the subset of each of its events.

    Attributes:
        name: "leave-one-out", "global-time", "ratio" or "given".
        params: what to pass to `by_name` to get the same split again.
        subset: (events,) int8: TRAIN=0, VALID=1, TEST=2, UNUSED=-1.
        leak: a sentence on what training sees that a system in use would not know, or None.
        note: a sentence on anything else that was decided on the way, or None.
    """

    dataset: Dataset
    name: str
    params: dict[str, Any]
    subset: NDArray[np.int8]
    leak: str | None = None
    note: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the dataset's fingerprint, the name, and the subset of every event; of people's own events alone,
        so that data have the same splits before and after a generator added to them."""
        synthetic = self.dataset.interactions.synthetic
        subset = self.subset if synthetic is None else self.subset[~synthetic]
        digest = hashlib.sha256(json.dumps([self.dataset.fingerprint_without_synthetic, self.name]).encode())
        digest.update(np.ascontiguousarray(subset, dtype=np.int8).tobytes())
        return digest.hexdigest()

    def sizes(self) -> dict[str, int]:
        """Number of events in each subset."""
        return {name: int((self.subset == subset).sum()) for name, subset in _SUBSETS.items()}

    def training_view(self) -> TrainingView:
        """The training and validation events, copied, and what describes users and items."""
        data = self.dataset
        train = data.interactions.where(self.subset == TRAIN)
        return TrainingView(
            train=train,
            valid=self._task("valid", train),
            num_users=data.num_users,
            num_items=data.num_items,
            item_ids=data.item_ids,
            social=data.social,
            kg=data.kg,
            item_table=data.items,
            user_table=data.users,
        )

    def task(self, name: Literal["valid", "test"]) -> Task:
        """The users with an event in the subset, their earlier events and the events to be found.

        Validation histories are training events; test histories are training and validation events.

        Raises:
            ConfigError: ``name`` is neither "valid" nor "test".
        """
        if name not in ("valid", "test"):
            raise ConfigError(f"There is no task {name!r}.", did_you_mean(str(name), ["valid", "test"]))
        return self._task(name)

    def _task(self, name: str, train: Histories | None = None) -> Task:
        """``train``: the training events, whose arrays are shared where everybody in them is in the task."""
        events = self.dataset.interactions
        truth = events.where(self.subset == _SUBSETS[name])
        chosen = truth.lengths > 0
        users = np.flatnonzero(chosen).astype(np.int64)
        trains = self.subset == TRAIN
        known = trains if name == "valid" else trains | (self.subset == VALID)
        if train is not None and train.lengths[users].sum() == len(train.items):
            histories = train.take(users)
        else:
            histories = events.where(known & np.repeat(chosen, events.lengths)).take(users)
        if events.synthetic is not None:
            trains &= ~events.synthetic
        popularity = np.zeros(self.dataset.num_items, dtype=np.int64)
        for start in range(0, len(trains), BLOCK):
            here = slice(start, start + BLOCK)
            popularity += np.bincount(events.items[here][trains[here]], minlength=len(popularity))
        seen = None if events.synthetic is None else histories.without_synthetic()
        return Task(name, users, histories, truth.take(users), popularity, seen)


_SUBSETS = {"train": TRAIN, "valid": VALID, "test": TEST, "unused": UNUSED}


def _shown(name: str, params: dict[str, Any] | None) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in (params or {}).items())})" if params else name


def _of_real_interactions(make: Callable[..., Split]) -> Callable[..., Split]:
    """Splits are made of people's own events. What a generator wrote trains, if it saw no other training subset."""

    @functools.wraps(make)
    def split(dataset: Dataset, *args: Any, **params: Any) -> Split:
        if dataset.interactions.synthetic is None:
            return make(dataset, *args, **params)
        made = make(dataset.without_synthetic(), *args, **params)
        told = dataset.report.get("augmentation", {})
        if told.get("split_fingerprint") not in (None, made.fingerprint):
            was, now = (told["split"], told.get("split_params")), (made.name, made.params)
            raise DataError(
                f"This dataset was augmented for the split {_shown(*was)}, and {_shown(*now)} is another: what was "
                "added may have been made from what is tested.",
                f"Use that split, or augment the data again for {_shown(*now)}.",
            )
        subset = np.full(dataset.num_interactions, TRAIN, dtype=np.int8)
        subset[~dataset.interactions.synthetic] = made.subset
        return dataclasses.replace(made, dataset=dataset, subset=subset)

    return split


@_of_real_interactions
def leave_one_out(dataset: Dataset) -> Split:
    """The last event of each user is tested, the last but one validates, the rest trains.

    Users with fewer than three events stay wholly in training.

    Raises:
        DataError: no user has three events.
    """
    events = dataset.interactions
    subset = np.full(len(events.items), TRAIN, dtype=np.int8)
    ends = events.offsets[1:][events.lengths >= 3]
    subset[ends - 1] = TEST
    subset[ends - 2] = VALID
    leak = (
        "Leave-one-out leaks the future: training sees events of other users that happened after the events "
        "it is tested on"
    )
    share = _later(dataset, subset)
    if share is not None:
        leak += f" (on average {share:.0%} of the training events are later than a test event)"
    return _checked(
        Split(dataset, "leave-one-out", {}, subset, leak + "."),
        "Leave-one-out needs users with at least three events. Use split.ratio, or bring more data.",
    )


@_of_real_interactions
def global_time(dataset: Dataset, quantile: float = 0.9, valid_quantile: float = 0.9) -> Split:
    """Everything from one moment on is tested; training is strictly before it.

    Args:
        quantile: share of all events before the cut (ties at the cut go to the test subset).
        valid_quantile: share of the events before the cut that train; the rest validates, cut by time as
            well.

    Raises:
        ConfigError: a quantile is not between 0 and 1.
        DataError: the dataset has no timestamps, or all times are equal.
    """
    _between("quantile", quantile)
    _between("valid_quantile", valid_quantile)
    times = dataset.interactions.times
    if not dataset.has_timestamps or times is None:
        what = "only an order within each user" if times is not None else "no time column"
        raise DataError(
            f"A global time split needs timestamps, and this dataset has {what}.",
            'Name the column when reading the data (time="..."), or use split.leave_one_out, split.ratio or '
            "split.given.",
        )
    subset = np.full(len(times), TRAIN, dtype=np.int8)
    cut = np.quantile(times, quantile, method="higher")
    before = times < cut
    subset[~before] = TEST
    if before.any():
        subset[before & (times >= np.quantile(times[before], valid_quantile, method="higher"))] = VALID
    return _checked(
        Split(dataset, "global-time", {"quantile": quantile, "valid_quantile": valid_quantile}, subset),
        "Too many events share one time to cut there. Lower the quantiles, or use split.leave_one_out or split.ratio.",
    )


@_of_real_interactions
def ratio(dataset: Dataset, train: float = 0.8, valid: float = 0.1, seed: int = 0) -> Split:
    """A random share of each user's events for each subset; the rest is tested.

    Shares are rounded per user, and every user keeps at least one training event.

    Raises:
        ConfigError: shares that are negative or leave nothing to test.
        DataError: no user has enough events for a test event.
    """
    test = round(1 - train - valid, 12) + 0.0  # no negative zero
    if not (0 < train < 1 and 0 <= valid < 1 and test > 0):
        raise ConfigError(
            f"Shares train={train} and valid={valid} leave {test} for the test subset.",
            "Both must be between 0 and 1 and add up to less than 1.",
        )
    events = dataset.interactions
    subset = np.full(len(events.items), TRAIN, dtype=np.int8)
    rng = np.random.default_rng(seed)
    for first, rows in events.blocks():
        # Within each user, events are ranked by a random key; the first ranks are tested, the next validate.
        lengths, start = rows.lengths, events.offsets[first]
        order = start + np.lexsort((rng.random(len(rows.items)), rows.owners))
        tested = np.minimum(np.floor(lengths * test + 0.5), np.maximum(lengths - 1, 0))
        validated = np.minimum(np.floor(lengths * valid + 0.5), np.maximum(lengths - 1 - tested, 0))
        subset[order[rows.positions < np.repeat(tested + validated, lengths)]] = VALID
        subset[order[rows.positions < np.repeat(tested, lengths)]] = TEST
    leak = "A random split ignores time: training sees events that happened after those it is tested on."
    return _checked(
        Split(dataset, "ratio", {"train": train, "valid": valid, "seed": seed}, subset, leak),
        "No user has enough events for that share. Lower train and valid, or bring more data.",
    )


@_of_real_interactions
def given(dataset: Dataset, scheme: str | None = None) -> Split:
    """The split that came with the data.

    A split without a validation subset gets one: the last training event of each user who has at least two, or one drawn
    at random where events have no order.
        `Split.note` says so.

    Args:
        scheme: which one, if the dataset has several.

    Raises:
        DataError: the dataset has no given split, or its train or test subset is empty.
        ConfigError: the scheme is unknown, or there are several and none was named.
    """
    if not dataset.given:
        raise DataError(
            "This dataset came without a split.",
            "Pass splits=... when reading the data, or use split.global_time, split.leave_one_out or split.ratio.",
        )
    if scheme is None:
        if len(dataset.given) > 1:
            raise ConfigError(
                f"This dataset has {len(dataset.given)} given splits and none was named.",
                f"Pass scheme=... as one of {', '.join(sorted(dataset.given))}.",
            )
        scheme = next(iter(dataset.given))
    elif scheme not in dataset.given:
        raise ConfigError(f"There is no given split {scheme!r}.", did_you_mean(scheme, dataset.given))
    subset, note = dataset.given[scheme].copy(), None
    events = dataset.interactions
    if not (subset == VALID).any():
        train = np.flatnonzero(subset == TRAIN)
        which = "the last"
        if events.times is None:  # the last row of a person is often that of the item with the largest number
            train, which = np.random.default_rng(0).permutation(train), "a random"
            train = train[np.argsort(events.owners[train], kind="stable")]
        owners = events.owners[train]
        last = np.ones(len(train), dtype=bool)
        last[:-1] = owners[1:] != owners[:-1]
        several = np.bincount(owners, minlength=len(events))[owners] >= 2
        subset[train[last & several]] = VALID
        note = (
            f"The given split {scheme!r} has no validation subset; {which} training event of each user with "
            f"at least two was taken for it ({int((subset == VALID).sum()):,} events)."
        )
    share = _later(dataset, subset)
    leak = "A given split is used as it is; training may see events later than the test."
    if share is not None:
        leak = f"In the given split on average {share:.0%} of the training events are later than a test event."
    if share == 0:
        leak = None
    return _checked(
        Split(dataset, "given", {"scheme": scheme}, subset, leak, note),
        "Check the column `split` of the splits table, or use another split.",
    )


def default(dataset: Dataset) -> Split:
    """Global time where there are timestamps, else the given split (the first, by name), else ratio.

    Raises:
        DataError: the dataset is too small for that split.
    """
    if dataset.has_timestamps:
        return global_time(dataset)
    if dataset.given:
        return given(dataset, min(dataset.given))
    return ratio(dataset)


_BY_NAME: dict[str, Callable[..., Split]] = {
    "leave-one-out": leave_one_out,
    "global-time": global_time,
    "ratio": ratio,
    "given": given,
    "default": default,
}


def by_name(name: str, dataset: Dataset, **params: Any) -> Split:
    """The split called ``name`` (hyphens or underscores), with its own parameters.

    Raises:
        ConfigError: unknown name or parameter.
        DataError: the dataset does not allow that split.
    """
    key = name.replace("_", "-")
    if key not in _BY_NAME:
        raise ConfigError(f"There is no split {name!r}.", did_you_mean(key, _BY_NAME))
    function = _BY_NAME[key]
    known = list(inspect.signature(function).parameters)[1:]
    for param in params:
        if param not in known:
            remedy = did_you_mean(param, known) if known else "It has no parameters."
            raise ConfigError(f"Split {key!r} has no parameter {param!r}.", remedy)
    return function(dataset, **params)


def _later(dataset: Dataset, subset: NDArray[np.int8]) -> float | None:
    """The share of training events later than a test event, averaged over these; None without times."""
    times = dataset.interactions.times
    if not dataset.has_timestamps or times is None or not ((subset == TEST).any() and (subset == TRAIN).any()):
        return None
    train = np.sort(times[subset == TRAIN])
    return float(1 - np.searchsorted(train, times[subset == TEST], side="right").mean() / len(train))


def _between(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ConfigError(f"{name} was given {value}.", "It must lie between 0 and 1, for example 0.9.")


def _checked(split: Split, remedy: str) -> Split:
    for name in ("train", "test"):
        if not (split.subset == _SUBSETS[name]).any():
            raise DataError(f"The {split.name} split leaves the {name} subset empty.", remedy)
    return split
