"""A split of a dataset into training, validation and test subset, and the views that are passed on.

Everything that learns receives a `TrainingView`, which holds no reference to the test subset. What is tested is a
`Task`. How a dataset is split: `rediffuse.data.split`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from rediffuse.data import cold_users, new_items
from rediffuse.data.histories import BLOCK, Histories, index_type
from rediffuse.display import Displayed
from rediffuse.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    import polars as pl

    from rediffuse.data.dataset import Dataset, KnowledgeGraph, SocialGraph
    from rediffuse.data.item_features import Feature

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, -1
SUBSETS = {"train": TRAIN, "valid": VALID, "test": TEST, "unused": UNUSED}
# The name of the split that holds items out, whose histories are those of training.
COLD_ITEMS = "cold-items"
# Which interactions of a held-out subset are to be predicted, see `Split.targets`.
Targets = Literal["all", "next", "successive", "later"]


@dataclass(frozen=True, eq=False)
class Task:
    """Users to recommend to, their histories, and the interactions that followed.

    Attributes:
        name: "valid" or "test".
        users: (n,) int64 numbers of the users with at least one interaction in the subset. Where targets are predicted
            one after the other, there is a row for each of them, so a user is in several.
        histories: n rows, the interactions before the subset; empty for users who are new in it. In a row of a single
            target, all that came before it. Where items are held out, the training interactions.
        truth: n rows, the interactions in the subset; the target interactions alone, where the data name some.
        seen: n rows, the interactions that the policy "unseen" filters, where they are not ``histories``.
        popularity: (num_items,) int64 training interactions per item.
    """

    name: str
    users: NDArray[np.int64]
    histories: Histories
    truth: Histories
    popularity: NDArray[np.int64]
    seen: Histories | None = None

    @property
    def by_target(self) -> bool:
        """Whether users are in several rows, one for each of their targets."""
        return bool((self.users[1:] == self.users[:-1]).any())

    @property
    def has_history(self) -> NDArray[np.bool_]:
        """(n,) whether there is an interaction before the subset; synthetic ones do not count."""
        return self.histories.without_synthetic().lengths > 0

    def with_history(self) -> Task:
        """The rows with a history; the task itself if all have one."""
        chosen = np.flatnonzero(self.has_history)
        return self if len(chosen) == len(self.users) else self.take(chosen)

    def take(self, rows: NDArray[np.int64]) -> Task:
        """Some of its rows, in the order of ``rows``."""
        return dataclasses.replace(
            self,
            users=self.users[rows],
            histories=self.histories.take(rows),
            truth=self.truth.take(rows),
            seen=None if self.seen is None else self.seen.take(rows),
        )


@dataclass(frozen=True, eq=False)
class TrainingView:
    """All that training may see. It shares no array with the test subset.

    Attributes:
        train: the training interactions; one row per user, also for users without any.
        valid: the validation task; without rows where the split has no validation subset.
        item_ids: (num_items,) ids of the whole catalogue.
        social, kg: graphs, if there are any.
        item_table: row i describes item i.
        user_table: row u describes user u.
        has_timestamps: whether times are seconds since the epoch; False: they are an order, or there are none.
        item_features, user_features: the columns of the tables that models may learn from as content.
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
    has_timestamps: bool = False
    item_features: tuple[Feature, ...] = ()
    user_features: tuple[Feature, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Split(Displayed):
    """A dataset and the subset of each of its interactions.

    Attributes:
        name: "leave-one-out", "global-time", "sessions", "ratio", "cold-items", "given" or "none".
        params: what to pass to `rediffuse.data.split.by_name` to get the same split again.
        subset: (interactions,) int8: TRAIN=0, VALID=1, TEST=2, UNUSED=-1.
        leak: a sentence on what training sees that a system in use would not know, or None.
        note: a sentence on anything else that was decided on the way, or None.
        targets: what is predicted of a held-out subset. "all": its interactions, together, from what came before the
            subset. "successive": each of them, from all that came before it. "next": the first of each user.
            "later": each but the first of a user, from all that came before it.
    """

    dataset: Dataset
    name: str
    params: dict[str, Any]
    subset: NDArray[np.int8]
    leak: str | None = None
    note: str | None = None
    targets: Targets = "all"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the dataset's fingerprint, the name, what is predicted, and the subset of every interaction.

        Synthetic interactions do not count, so a dataset has the same splits before and after a generator added to it.
        """
        synthetic = self.dataset.interactions.synthetic
        subset = self.subset if synthetic is None else self.subset[~synthetic]
        parts = [self.dataset.fingerprint_without_synthetic, self.name]
        parts += [] if self.targets == "all" else [self.targets]
        digest = hashlib.sha256(json.dumps(parts).encode())
        digest.update(np.ascontiguousarray(subset, dtype=np.int8).tobytes())
        return digest.hexdigest()

    def sizes(self) -> dict[str, int]:
        """Number of interactions in each subset."""
        return {name: int((self.subset == subset).sum()) for name, subset in SUBSETS.items()}

    def is_truth(self, name: str) -> NDArray[np.bool_]:
        """(interactions,) whether an interaction is to be predicted in the subset ``name``."""
        interactions = self.dataset.interactions
        truth = self.subset == SUBSETS[name]
        if interactions.target is not None:
            truth &= interactions.target
        if self.targets == "later":
            starts, stops = interactions.offsets[:-1], interactions.offsets[1:]
            if interactions.synthetic is None:
                truth[starts[starts < stops]] = False
            else:
                own = np.flatnonzero(~interactions.synthetic)
                first, end = np.searchsorted(own, starts), np.searchsorted(own, stops)
                truth[own[first[first < end]]] = False
        elif self.targets == "next":
            places = np.flatnonzero(truth)
            owners = interactions.owner_of(places)
            truth[places[1:][owners[1:] == owners[:-1]]] = False
        return truth

    def is_known(self, name: str) -> NDArray[np.bool_]:
        """(interactions,) whether an interaction may be in a history of the subset ``name``."""
        if self.targets != "all":  # whatever came before, in the same subset too
            return (self.subset != UNUSED) & (self.subset <= SUBSETS[name])
        trains = self.subset == TRAIN
        return trains if name == "valid" or self.name == COLD_ITEMS else trains | (self.subset == VALID)

    def item_counts(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(num_items,) interactions under ``chosen`` (interactions,) per item; synthetic ones do not count."""
        interactions = self.dataset.interactions
        counts = np.zeros(self.dataset.num_items, dtype=np.int64)
        for start in range(0, len(chosen), BLOCK):
            here = slice(start, start + BLOCK)
            kept = chosen[here] if interactions.synthetic is None else chosen[here] & ~interactions.synthetic[here]
            counts += np.bincount(interactions.items[here][kept], minlength=len(counts))
        return counts

    def train_counts(self) -> NDArray[np.int64]:
        """(num_items,) training interactions per item; synthetic ones do not count."""
        return self.item_counts(self.subset == TRAIN)

    def user_counts(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(num_users,) interactions under ``chosen`` (interactions,) per user; synthetic ones do not count."""
        interactions = self.dataset.interactions
        kept = chosen if interactions.synthetic is None else chosen & ~interactions.synthetic
        before = np.zeros(len(kept) + 1, dtype=index_type(len(kept)))
        np.cumsum(kept, out=before[1:])
        return np.diff(before[interactions.offsets]).astype(np.int64)

    def training_view(self, place: Callable[[Histories], Histories] | None = None) -> TrainingView:
        """The training and validation interactions, copied, and what describes users and items.

        Args:
            place: is given the training interactions, before others are copied, and returns them from another place.
        """
        train = self.dataset.interactions.where(self.subset == TRAIN)
        train = train if place is None else place(train)
        return self.view_of(train, self._task("valid", train))

    def view_of(self, train: Histories, valid: Task) -> TrainingView:
        """The training view of its training interactions and its validation task."""
        data = self.dataset
        return TrainingView(
            train=train,
            valid=valid,
            num_users=data.num_users,
            num_items=data.num_items,
            item_ids=data.item_ids,
            social=data.social,
            kg=data.kg,
            item_table=data.items,
            user_table=data.users,
            has_timestamps=data.has_timestamps,
            item_features=data.item_features,
            user_features=data.user_features,
        )

    def training_on_validation(self) -> Split:
        """The split with its validation interactions among those of training: nothing is left to choose by."""
        return replace(self, subset=np.where(self.subset == VALID, TRAIN, self.subset))

    def before_test(self) -> Histories:
        """The training and validation interactions, one row per user: what a system in use would know."""
        return self.dataset.interactions.where((self.subset == TRAIN) | (self.subset == VALID))

    def task(self, name: Literal["valid", "test"]) -> Task:
        """The users with a (target) interaction in the subset, their earlier interactions and those to predict.

        Validation histories are training interactions; test histories are training and validation interactions, but
        training interactions alone where items are held out. Where targets are predicted one after the other, those
        before a target are in its history, too.

        Raises:
            ConfigError: ``name`` is neither "valid" nor "test".
        """
        if name not in ("valid", "test"):
            raise ConfigError(f"There is no task {name!r}.", did_you_mean(name, ["valid", "test"]))
        return self._task(name)

    def _task(self, name: str, train: Histories | None = None) -> Task:
        """As `task`; arrays of ``train``, the training interactions, are shared if all their users are in the task."""
        users, histories, truth = self._together(name, train) if self.targets == "all" else self._one_by_one(name)
        seen = None if self.dataset.interactions.synthetic is None else histories.without_synthetic()
        if name == "test" and self.name == COLD_ITEMS:
            seen = self.before_test().take(users).without_synthetic()
        return Task(name, users, histories, truth, self.train_counts(), seen)

    def _together(self, name: str, train: Histories | None) -> tuple[NDArray[np.int64], Histories, Histories]:
        """Users, histories and truth, with one row per user."""
        interactions, known = self.dataset.interactions, self.is_known(name)
        truth = interactions.where(self.is_truth(name))
        chosen = truth.lengths > 0
        users = np.flatnonzero(chosen).astype(np.int64)
        if train is not None and train.lengths[users].sum() == len(train.items):
            histories = train.take(users)
        else:
            histories = interactions.where(known & np.repeat(chosen, interactions.lengths)).take(users)
        return users, histories, truth.take(users)

    def _one_by_one(self, name: str) -> tuple[NDArray[np.int64], Histories, Histories]:
        """Users, histories and truth, with one row per target, and all that came before it as its history."""
        interactions, known = self.dataset.interactions, self.is_known(name)
        places = np.flatnonzero(self.is_truth(name))
        users = interactions.owner_of(places)
        kept = interactions.where(known)
        earlier = np.cumsum(known)[places] - 1  # known interactions before the target, of all users; it is known itself
        return users, kept.beginnings(users, earlier - kept.offsets[users]), interactions.singles(places)

    def _display(self) -> tuple[str, dict[str, Any]]:
        sizes = self.sizes()
        return f"Split {split_label(self.name, self.params)}", {
            **{name: f"{sizes[name]:,} interactions" for name in ("train", "valid", "test")},
            "targets": None if self.targets == "all" else self._targets_text(),
            "unused": f"{sizes['unused']:,} interactions" if sizes["unused"] else None,
            "dataset": f"{self.dataset.num_users:,} users, {self.dataset.num_items:,} items",
            "no history": cold_users.shares_text(self),
            "new items": new_items.shares_text(self),
            "leak": self.leak,
            "note": self.note,
        }

    def _targets_text(self) -> str:
        counts = [f"{int(self.is_truth(name).sum()):,} in {name}" for name in ("valid", "test")]
        return f"{self.targets}: {', '.join(counts)}"


def split_label(name: str, params: dict[str, Any] | None) -> str:
    """A split as text, for example ``ratio(train=0.8, valid=0.1, seed=0)``."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in params.items())})" if params else name
