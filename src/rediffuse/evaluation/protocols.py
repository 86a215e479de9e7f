"""Evaluation protocols by name.

A protocol settles three things that papers often leave out: whether validation interactions are input at test time,
which items the policy "unseen" filters, and whether the whole catalogue is ranked.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rediffuse.data.dataset import Dataset
from rediffuse.data.histories import Histories
from rediffuse.data.split import TRAIN, Split, Task, by_name
from rediffuse.data.subsets import COLD_ITEMS
from rediffuse.errors import ConfigError, RunError, did_you_mean
from rediffuse.evaluation.metrics import POLICIES
from rediffuse.evaluation.rank import Score

_SAMPLED = (
    "Ranks are among sampled items: they compare neither with ranks in the whole catalogue nor with other numbers of "
    "samples (Krichene & Rendle, KDD 2020)."
)


@dataclass(frozen=True)
class Protocol:
    """How a model is evaluated.

    Attributes:
        name: name of the protocol.
        split: name of the split that it needs; None: any.
        negatives: number of sampled items that each user's true items are ranked among; None: the whole catalogue.
        exclude_seen: whether items of the user's history are left out of the sample.
        policies: the reported ones of "all" (seen items kept) and "unseen" (seen items filtered).
        validation_is_input: whether validation interactions are part of the histories at test time.
        note: a sentence to print beside the figures, or None.
    """

    name: str
    split: str | None
    negatives: int | None = None
    exclude_seen: bool = True
    policies: tuple[str, ...] = POLICIES
    validation_is_input: bool = True
    note: str | None = None

    @property
    def comparable(self) -> bool:
        """Whether the figures may stand beside those of other protocols."""
        return self.negatives is None

    @property
    def candidates(self) -> str:
        """The ranked items, in words."""
        if self.negatives is None:
            return "all"
        return f"sampled-{self.negatives}" if self.exclude_seen else f"sampled-{self.negatives}, seen items among them"

    def to_dict(self) -> dict[str, Any]:
        """The protocol as it is written beside the figures, ready for JSON."""
        return {
            "name": self.name,
            "candidates": self.candidates,
            "seen": list(self.policies),
            "validation_is_input": self.validation_is_input,
            "comparable": self.comparable,
            "note": self.note,
        }

    def task(self, split: Split) -> Task:
        """The test task of a split.

        Raises:
            RunError: the protocol needs another split.
        """
        if self.split is not None and self.split != split.name:
            raise RunError(
                f"Protocol {self.name!r} needs the split {self.split!r}, and this is {split.name!r}.",
                f"Train with --split {self.name}.",
            )
        task = split.task("test")
        if self.validation_is_input:
            return task
        train = split.dataset.interactions.where(split.subset == TRAIN).take(task.users)
        seen = task.histories.without_synthetic() if task.seen is None else task.seen
        return dataclasses.replace(task, histories=train, seen=seen)

    def on(self, split: Split) -> Protocol:
        """The protocol as it is on a split: where items are held out, histories are those of training in any."""
        return dataclasses.replace(self, validation_is_input=False) if split.name == COLD_ITEMS else self


_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("leave-one-out", "leave-one-out"),
        Protocol("global-time", "global-time"),
        Protocol("sessions", "sessions"),
        Protocol("ratio", "ratio"),
        Protocol(COLD_ITEMS, COLD_ITEMS, validation_is_input=False),
        Protocol("given", "given"),
        Protocol("paper:diffurec", "given", policies=("all",), note="As published: seen items are not filtered."),
        Protocol(
            "paper:diffrec",
            "given",
            policies=("unseen",),
            validation_is_input=False,
            note="As released: training interactions are the input; training and validation items are filtered.",
        ),
        Protocol(
            "paper:diffnet",
            "given",
            negatives=1000,
            exclude_seen=False,
            policies=("all",),
            note=f"As released. Its HR is capped_recall. {_SAMPLED}",
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol called ``name``, which may be ``sampled-N`` for any N.

    Raises:
        ConfigError: the name is unknown; the error gives the closest one.
    """
    if found := re.fullmatch(r"sampled-([1-9][0-9]*)", name):
        return Protocol(name, None, negatives=int(found.group(1)), note=_SAMPLED)
    if name not in _PROTOCOLS:
        raise ConfigError(f"There is no protocol {name!r}.", did_you_mean(name, [*_PROTOCOLS, "sampled-100"]))
    return _PROTOCOLS[name]


def split_for(name: str, dataset: Dataset, **params: Any) -> Split:
    """Make the split called ``name``, or the split that the protocol of that name needs.

    Raises:
        ConfigError: the name is unknown, or belongs to a protocol that fits any split.
        ConfigError, DataError: as `rediffuse.data.split.by_name`.
    """
    if name.startswith(("paper:", "sampled-")):  # other protocols have the names of their splits
        rules = protocol(name)
        if rules.split is None:
            raise ConfigError(
                f"Protocol {name!r} fits any split, so it does not say which.",
                f"Train on a split, for example global-time, and evaluate with --protocol {name}.",
            )
        name = rules.split
    return by_name(name, dataset, **params)


def among_sampled(
    score: Score, task: Task, negatives: int, num_items: int, seed: int = 0, exclude_seen: bool = True
) -> Score:
    """Restrict ``score`` to each user's true items and a sample of others; all other items score -inf.

    The sample is ``negatives`` items, drawn uniformly without repeats from those that are neither true nor, if
    ``exclude_seen``, in the user's history; fewer if fewer are left. It depends only on ``seed`` and the user's number.
    """
    seen = task.histories.without_synthetic() if task.seen is None else task.seen

    def sampled(histories: Histories, start: int) -> Tensor:
        scores = score(histories, start)
        kept = torch.zeros(scores.shape, dtype=torch.bool)
        for row in range(len(histories)):
            position = start + row
            true = task.truth.row(position)
            excluded = np.union1d(seen.row(position), true) if exclude_seen else true
            drawn = _draw(np.unique(excluded), negatives, num_items, (seed, int(task.users[position])))
            kept[row, torch.from_numpy(np.concatenate((true, drawn)).astype(np.int64))] = True
        return scores.masked_fill(~kept.to(scores.device), -torch.inf)

    return sampled


def _draw(excluded: NDArray[np.int32], count: int, num_items: int, seed: tuple[int, int]) -> NDArray[np.int64]:
    """Draw ``count`` distinct items, or as many as there are, none of them in ``excluded`` (sorted, distinct)."""
    left = num_items - len(excluded)
    chosen = np.random.default_rng(seed).choice(left, size=min(count, left), replace=False)
    # The n-th item that is not excluded: n plus the number of excluded items before it.
    return chosen + np.searchsorted(excluded - np.arange(len(excluded)), chosen, side="right")
