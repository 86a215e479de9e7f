"""Ways to split a dataset: by time, leave-one-out, at random, by item, or as given with the data.

They return a `Split`, which is in `rediffuse.data.subsets` together with its views (`TrainingView`, `Task`).

Wherever a function takes a dataset, it also takes the path of a dataset folder, which it loads.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rediffuse.arguments import require_integer, require_number, wrong_type
from rediffuse.data import cold_users, new_items
from rediffuse.data.leaks import share_of_later_training
from rediffuse.data.subsets import (
    COLD_ITEMS,
    SUBSETS,
    TEST,
    TRAIN,
    UNUSED,
    VALID,
    Split,
    Targets,
    Task,
    TrainingView,
    split_label,
)
from rediffuse.data.targets import last_targets
from rediffuse.data.targets import remark as remark_on_targets
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, did_you_mean, refuse_unknown

if TYPE_CHECKING:
    from rediffuse.data.dataset import Dataset

__all__ = [
    "TEST",
    "TRAIN",
    "UNUSED",
    "VALID",
    "Split",
    "Task",
    "TrainingView",
    "as_split",
    "by_name",
    "cold_items",
    "default",
    "given",
    "global_time",
    "leave_one_out",
    "none",
    "ratio",
    "sessions",
]


def _of_real_interactions(make: Callable[..., Split]) -> Callable[..., Split]:
    """Decorate a splitter to see real interactions only; synthetic ones train, if generated for that split."""

    @functools.wraps(make)
    def split(dataset: Dataset | str | PathLike[str], *args: Any, **params: Any) -> Split:
        from rediffuse.data.loading import as_dataset

        dataset = as_dataset("dataset", dataset)
        if dataset.interactions.synthetic is None:
            return make(dataset, *args, **params)
        made = make(dataset.without_synthetic(), *args, **params)
        augmentation = dataset.report.get("augmentation", {})
        if augmentation.get("split_fingerprint") not in (None, made.fingerprint):
            was = split_label(augmentation["split"], augmentation.get("split_params"))
            now = split_label(made.name, made.params)
            raise DataError(
                f"This dataset was augmented for the split {was}, and {now} is another: the synthetic interactions may "
                "have been made from interactions that are tested.",
                f"Use that split, or augment the data again for {now}.",
            )
        subset = np.full(dataset.num_interactions, TRAIN, dtype=np.int8)
        subset[~dataset.interactions.synthetic] = made.subset
        return dataclasses.replace(made, dataset=dataset, subset=subset)

    return split


@_of_real_interactions
def leave_one_out(dataset: Dataset) -> Split:
    """The last interaction of each user is tested, the last but one validates, the rest trains.

    Users with fewer than three interactions stay wholly in training.

    Where the data name target events, the last target interaction of a user is tested and the last one before it
    validates, if at least two interactions come before the one and one before the other. The subsets are cut there:
    what follows a target, up to the next, is in its subset, but only the target is truth.

    Raises:
        DataError: no user has three interactions, or two before a target interaction.
    """
    interactions = dataset.interactions
    subset = np.full(len(interactions.items), TRAIN, dtype=np.int8)
    tested = last_targets(interactions)
    tested[tested < 2] = -1
    validated = last_targets(interactions, before=tested)
    validated[validated < 1] = -1
    for first, rows in interactions.blocks():
        last, earlier = (places[first + rows.owners] for places in (tested, validated))
        here = subset[interactions.offsets[first] : interactions.offsets[first + len(rows)]]
        here[(earlier >= 0) & (rows.positions >= earlier)] = VALID
        here[(last >= 0) & (rows.positions >= last)] = TEST
    leak = (
        "Leave-one-out leaks the future: training sees interactions of other users that happened after the "
        "interactions it is tested on"
    )
    share = share_of_later_training(dataset, subset)
    if share is not None:
        leak += f" (on average {share:.0%} of the training interactions are later than a test interaction)"
    return _checked(
        Split(dataset, "leave-one-out", {}, subset, leak + "."),
        "Leave-one-out needs users with at least three interactions, and two before a target interaction where target "
        "events were named. Use split.ratio, or bring more data.",
    )


@_of_real_interactions
def global_time(
    dataset: Dataset, quantile: float = 0.9, valid_quantile: float = 0.9, targets: Targets = "all"
) -> Split:
    """All interactions from one point in time on are tested; training is strictly before it.

    Args:
        dataset: with timestamps.
        quantile: share of all interactions before the cut (ties at the cut go to the test subset).
        valid_quantile: share of the interactions before the cut that train; the rest validates, cut by time as
            well.
        targets: what is predicted of a user after the cut. "all": all interactions, together, from those before it;
            "next": the first alone; "successive": each of them, from all that came before it, those after the cut
            included, and metrics are means over these targets.

    Raises:
        ConfigError: a quantile is not between 0 and 1, or ``targets`` is unknown.
        DataError: the dataset has no timestamps, or all times are equal.
    """
    if targets not in (known := ("all", "next", "successive")):
        raise ConfigError(f"targets was given {targets!r}.", did_you_mean(str(targets), known))
    times = _timestamps(dataset, "global time", quantile, valid_quantile)
    subset = np.full(len(times), TRAIN, dtype=np.int8)
    cut = np.quantile(times, quantile, method="higher")
    before = times < cut
    subset[~before] = TEST
    if before.any():
        subset[before & (times >= np.quantile(times[before], valid_quantile, method="higher"))] = VALID
    params: dict[str, Any] = {"quantile": quantile, "valid_quantile": valid_quantile}
    if targets != "all":
        params["targets"] = targets
    return _checked(
        Split(dataset, "global-time", params, subset, targets=targets),
        "Too many interactions have one time to cut there. Lower the quantiles, or use split.leave_one_out or "
        "split.ratio.",
    )


@_of_real_interactions
def sessions(dataset: Dataset, quantile: float = 0.9, valid_quantile: float = 0.9) -> Split:
    """Whole sessions are held out, those that end last: each of their items is predicted from those before it.

    A session is what the data call a user. Its first interaction is a history only. Nothing of a held-out session
    trains, so models meet it as that of a new user.

    Args:
        dataset: with timestamps.
        quantile: share of the sessions before the test subset, in the order in which they end (ties go to the test).
        valid_quantile: share of these that train; the last ones validate.

    Raises:
        ConfigError: a quantile is not between 0 and 1.
        DataError: the dataset has no timestamps, or too few sessions.
    """
    times = _timestamps(dataset, "sessions", quantile, valid_quantile)
    interactions = dataset.interactions
    of_session = np.full(len(interactions), UNUSED, dtype=np.int8)
    active = interactions.lengths > 0
    ends = times[interactions.offsets[1:][active] - 1]  # interactions are in order of time
    found = np.full(len(ends), TRAIN, dtype=np.int8)
    before = ends < np.quantile(ends, quantile, method="higher")
    found[~before] = TEST
    if before.any():
        found[before & (ends >= np.quantile(ends[before], valid_quantile, method="higher"))] = VALID
    of_session[active] = found
    subset = np.repeat(of_session, interactions.lengths)
    made = Split(dataset, "sessions", {"quantile": quantile, "valid_quantile": valid_quantile}, subset, targets="later")
    share = share_of_later_training(dataset, subset, made.is_truth("test"))
    if share:
        leak = (
            "Sessions are held out in the order in which they end, and some that are tested began before others that "
            f"train ended: on average {share:.2%} of the training interactions are later than a test interaction."
        )
        made = dataclasses.replace(made, leak=leak)
    short = [int((interactions.lengths[of_session == subset] == 1).sum()) for subset in (VALID, TEST)]
    if any(short):
        note = (
            f"{short[0]:,} validation and {short[1]:,} test sessions have a single interaction, so nothing is "
            "predicted in them."
        )
        made = dataclasses.replace(made, note=note)
    return _checked(
        made,
        "It needs sessions of two interactions or more that end at different times. Lower the quantiles, or use "
        "split.leave_one_out or split.ratio.",
    )


def _timestamps(dataset: Dataset, what: str, quantile: float, valid_quantile: float) -> NDArray[Any]:
    """The times of all interactions, for a split by time.

    Raises:
        ConfigError: a quantile is not between 0 and 1.
        DataError: the dataset has no timestamps.
    """
    for name, value in (("quantile", quantile), ("valid_quantile", valid_quantile)):
        if not 0 < require_number(name, value) < 1:
            raise ConfigError(f"{name} was given {value}.", "It must lie between 0 and 1, for example 0.9.")
    times = dataset.interactions.times
    if not dataset.has_timestamps or times is None:
        found = "only an order within each user" if times is not None else "no time column"
        raise DataError(
            f"A {what} split needs timestamps, and this dataset has {found}.",
            'Name the column when reading the data (time="..."), or use split.leave_one_out, split.ratio or '
            "split.given.",
        )
    return times


@_of_real_interactions
def ratio(dataset: Dataset, train: float = 0.8, valid: float = 0.1, seed: int = 0) -> Split:
    """A random share of each user's interactions for each subset; the rest is tested.

    Shares are rounded per user, and every user keeps at least one training interaction.

    Raises:
        ConfigError: shares that are negative or leave nothing to test, or a seed below 0.
        DataError: no user has enough interactions for a test interaction.
    """
    test = round(1 - require_number("train", train) - require_number("valid", valid), 12) + 0.0  # no negative zero
    if not (0 < train < 1 and 0 <= valid < 1 and test > 0):
        raise ConfigError(
            f"Shares train={train} and valid={valid} leave {test} for the test subset.",
            "Both must be between 0 and 1 and add up to less than 1.",
        )
    seed = require_integer("seed", seed, minimum=0)
    interactions = dataset.interactions
    subset = np.full(len(interactions.items), TRAIN, dtype=np.int8)
    rng = np.random.default_rng(seed)
    for first, rows in interactions.blocks():
        # Within each user, interactions are ranked by a random key; the first ranks are tested, the next validate.
        lengths, start = rows.lengths, interactions.offsets[first]
        order = start + np.lexsort((rng.random(len(rows.items)), rows.owners))
        tested = np.minimum(np.floor(lengths * test + 0.5), np.maximum(lengths - 1, 0))
        validated = np.minimum(np.floor(lengths * valid + 0.5), np.maximum(lengths - 1 - tested, 0))
        subset[order[rows.positions < np.repeat(tested + validated, lengths)]] = VALID
        subset[order[rows.positions < np.repeat(tested, lengths)]] = TEST
    leak = "A random split ignores time: training sees interactions that happened after those it is tested on."
    return _checked(
        Split(dataset, "ratio", {"train": train, "valid": valid, "seed": seed}, subset, leak),
        "No user has enough interactions for that share. Lower train and valid, or bring more data.",
    )


@_of_real_interactions
def cold_items(dataset: Dataset, fraction: float = 0.1, seed: int = 0) -> Split:
    """Whole items are held out, drawn at random: nothing with them trains, so models meet them as new items.

    Half of the held-out items are tested, one more if their number is odd; the others validate. Histories hold training
    interactions alone, in validation and in the test, and all of those of a user, whatever their time. Under the policy
    "unseen", the validation interactions of a user are filtered in the test too.

    Args:
        dataset: any; times are not needed.
        fraction: share of the items with an interaction that are held out, rounded.
        seed: of the draw.

    Raises:
        ConfigError: the fraction is not between 0 and 1, or the seed is below 0.
        DataError: that share is fewer than two items, or all of them.
    """
    if not 0 < require_number("fraction", fraction) < 1:
        raise ConfigError(f"fraction was given {fraction}.", "It must lie between 0 and 1, for example 0.1.")
    seed = require_integer("seed", seed, minimum=0)
    interactions = dataset.interactions
    present = np.flatnonzero(np.bincount(interactions.items, minlength=dataset.num_items))
    count = round(fraction * len(present))
    if not 2 <= count < len(present):
        raise DataError(
            f"fraction={fraction} of {len(present):,} items holds {count:,} out: at least two are needed, one for "
            "validation and one for the test, and one must be left to train on.",
            "Give another fraction, or bring data with more items.",
        )
    held_out = np.random.default_rng(seed).permutation(present)[:count]
    tested = held_out[: (count + 1) // 2]
    of_item = np.full(dataset.num_items, TRAIN, dtype=np.int8)
    of_item[held_out] = VALID
    of_item[tested] = TEST
    subset = of_item[interactions.items]
    leak = (
        "Items are held out, not a time: training and histories hold interactions that happened after those that are "
        "tested"
    )
    share = share_of_later_training(dataset, subset)
    if share is not None:
        leak += f" (on average {share:.0%} of the training interactions are later than a test interaction)"
    note = (
        f"{count:,} of {len(present):,} items are held out: {count - len(tested):,} for validation and {len(tested):,} "
        "for the test. A model that reads no item features knows nothing of them, so its choices on validation data "
        "are arbitrary."
    )
    return _checked(
        Split(dataset, COLD_ITEMS, {"fraction": fraction, "seed": seed}, subset, f"{leak}.", note),
        "Give another fraction or seed, or bring more data.",
    )


@_of_real_interactions
def given(dataset: Dataset, scheme: str | None = None) -> Split:
    """The split that came with the data.

    A split without a validation subset gets one: the last training interaction of each user who has at least two, or
    a random one where interactions have no order. `Split.note` says so.

    Args:
        dataset: with a given split.
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
    elif not isinstance(scheme, str) or scheme not in dataset.given:
        raise ConfigError(f"There is no given split {scheme!r}.", did_you_mean(scheme, dataset.given))
    subset, note = dataset.given[scheme].copy(), None
    interactions = dataset.interactions
    if not (subset == VALID).any():
        train = np.flatnonzero(subset == TRAIN)
        trained = interactions.where(subset == TRAIN)
        if interactions.times is None:  # the last row of a user is often that of the item with the largest number
            which = "a random"
            train = np.random.default_rng(0).permutation(train)
            if interactions.target is not None:
                train = train[interactions.target[train]]
            train = train[np.argsort(interactions.owners[train], kind="stable")]
            owners = interactions.owners[train]
            last = np.ones(len(train), dtype=bool)
            last[:-1] = owners[1:] != owners[:-1]
            subset[train[last & (trained.lengths[owners] >= 2)]] = VALID
        else:
            which = "the last"
            validated = last_targets(trained)
            validated[validated < 1] = -1
            start = np.repeat(validated, trained.lengths)
            # What follows the last target must not train.
            subset[train[(start >= 0) & (trained.positions >= start)]] = VALID
        note = (
            f"The given split {scheme!r} has no validation subset; {which} training interaction of each user with "
            f"at least two was taken for it ({int((subset == VALID).sum()):,} interactions)."
        )
    share = share_of_later_training(dataset, subset)
    leak = "A given split is used as it is; training may see interactions later than the test."
    if share is not None:
        leak = (
            f"In the given split on average {share:.0%} of the training interactions are later than a test interaction."
        )
    if share == 0:
        leak = None
    return _checked(
        Split(dataset, "given", {"scheme": scheme}, subset, leak, note),
        "Check the column `split` of the splits table, or use another split.",
    )


def none(dataset: Dataset | str | PathLike[str]) -> Split:
    """All interactions train; nothing validates and nothing is tested. For a model whose options are chosen already.

    Raises:
        DataError: the folder holds no dataset.
    """
    from rediffuse.data.loading import as_dataset

    dataset = as_dataset("dataset", dataset)
    return Split(dataset, "none", {}, np.full(dataset.num_interactions, TRAIN, dtype=np.int8))


def default(dataset: Dataset | str | PathLike[str]) -> Split:
    """Global time where there are timestamps, else the given split (the first, by name), else ratio.

    Raises:
        DataError: the dataset is too small for that split.
    """
    from rediffuse.data.loading import as_dataset

    dataset = as_dataset("dataset", dataset)
    if dataset.has_timestamps:
        return global_time(dataset)
    if dataset.given:
        return given(dataset, min(dataset.given))
    return ratio(dataset)


_BY_NAME: dict[str, Callable[..., Split]] = {
    "leave-one-out": leave_one_out,
    "global-time": global_time,
    "sessions": sessions,
    "ratio": ratio,
    COLD_ITEMS: cold_items,
    "given": given,
    "none": none,
    "default": default,
}


def by_name(name: str, dataset: Dataset | str | PathLike[str], **params: Any) -> Split:
    """The split called ``name`` (hyphens or underscores), with its own parameters.

    Raises:
        ConfigError: unknown name or parameter.
        DataError: the dataset does not allow that split.
    """
    function = by_name_function(name)
    known = list(inspect.signature(function).parameters)[1:]
    refuse_unknown(f"Split {name.replace('_', '-')!r}", params, known, "It has no parameters.")
    return function(dataset, **params)


def by_name_function(name: str) -> Callable[..., Split]:
    """The function that makes the split called ``name``; its first parameter is the dataset.

    Raises:
        ConfigError: unknown name.
    """
    if not isinstance(name, str):
        raise wrong_type("name", name, "the name of a split", did_you_mean("", _BY_NAME))
    key = name.replace("_", "-")
    if key not in _BY_NAME:
        raise ConfigError(f"There is no split {name!r}.", did_you_mean(key, _BY_NAME))
    return _BY_NAME[key]


def as_split(name: str, value: Any, make: Callable[[Dataset], Split] = default) -> Split:
    """A split as it is; of a dataset, or of the path of a dataset folder, the default split.

    Args:
        name: name of the argument, for errors.
        value: what was passed for it.
        make: makes the default split.

    Raises:
        ConfigError: it is something else.
        DataError: the folder holds no dataset, or the dataset is too small for the default split.

    Warns:
        RediffuseWarning: the default split was chosen, and which one that is.
    """
    if isinstance(value, Split):
        return value
    from rediffuse.data.loading import as_dataset

    split = make(as_dataset(name, value, "a Split, a Dataset or a dataset folder"))
    leak = "".join(f" {sentence}" for sentence in (split.leak, split.note) if sentence)
    warnings.warn(
        f"No split was given, so the default split of this dataset is used: {split_label(split.name, split.params)}."
        f"{leak} To choose one, pass a split, for example rd.split.leave_one_out(data).",
        RediffuseWarning,
        stacklevel=3,
    )
    return split


def _checked(split: Split, remedy: str) -> Split:
    for name in ("train", "test"):
        if not (split.subset == SUBSETS[name]).any():
            raise DataError(f"The {split.name} split leaves the {name} subset empty.", remedy)
    if not split.is_truth("test").any():
        if split.dataset.interactions.target is None:
            raise DataError(f"The {split.name} split leaves nothing to predict in the test subset.", remedy)
        raise DataError(
            f"The {split.name} split leaves no target interaction in the test subset.",
            "Name more target events when reading the data, or use another split.",
        )
    remarks = (split.note, remark_on_targets(split), cold_users.remark(split), new_items.remark(split))
    return dataclasses.replace(split, note=" ".join(filter(None, remarks)) or None)
