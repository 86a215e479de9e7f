"""Protocols by name: what is held out, what the model is shown, and what it ranks.

A protocol's test task says three things that papers often leave out: whether validation events are shown to the model
at test time, which items the policy "unseen" filters, and whether the whole catalogue is ranked.
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
from rediffuse.errors import ConfigError, RunError, did_you_mean
from rediffuse.evaluation.metrics import POLICIES
from rediffuse.evaluation.rank import Score

_SAMPLED = (
    "Ranks are among sampled items: not comparable with ranks in the whole catalogue, nor with another number of "
    "samples (Krichene & Rendle, KDD 2020)."
)


@dataclass(frozen=True)
class Protocol:
    """Attributes:
    name: as it is asked for.
    split: name of the split it needs, or None for any.
    negatives: items that each person's true items are ranked among; None: the whole catalogue.
    clean: whether items of the person's history are kept out of these.
    policies: which of "all" (seen items may come again) and "unseen" (they are filtered) it reports.
    validation_is_input: whether validation events are part of the history at test time.
    note: a sentence for whoever reads the numbers, or None.
    """

    name: str
    split: str | None
    negatives: int | None = None
    clean: bool = True
    policies: tuple[str, ...] = POLICIES
    validation_is_input: bool = True
    note: str | None = None

    @property
    def comparable(self) -> bool:
        """False where figures must not stand beside those of other protocols."""
        return self.negatives is None

    @property
    def candidates(self) -> str:
        if self.negatives is None:
            return "all"
        return f"sampled-{self.negatives}" if self.clean else f"sampled-{self.negatives}, seen items among them"

    def facts(self) -> dict[str, Any]:
        """What is written beside every number."""
        return {
            "name": self.name,
            "candidates": self.candidates,
            "seen": list(self.policies),
            "validation_is_input": self.validation_is_input,
            "comparable": self.comparable,
            "note": self.note,
        }

    def task(self, split: Split) -> Task:
        """The test task.

        Raises:
            RunError: the protocol is defined on another split.
        """
        if self.split is not None and self.split != split.name:
            raise RunError(
                f"Protocol {self.name!r} is defined on the split {self.split!r}, and this is {split.name!r}.",
                f"Train with --split {self.name}.",
            )
        task = split.task("test")
        if self.validation_is_input:
            return task
        shown = split.dataset.interactions.where(split.subset == TRAIN).take(task.users)
        return dataclasses.replace(task, histories=shown, seen=task.histories.without_synthetic())


_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("leave-one-out", "leave-one-out"),
        Protocol("global-time", "global-time"),
        Protocol("ratio", "ratio"),
        Protocol("given", "given"),
        Protocol("paper:diffurec", "given", policies=("all",), note="As published: seen items are not filtered."),
        Protocol(
            "paper:diffrec",
            "given",
            policies=("unseen",),
            validation_is_input=False,
            note="As released: the training row goes in, training and validation items are filtered.",
        ),
        Protocol(
            "paper:diffnet",
            "given",
            negatives=1000,
            clean=False,
            policies=("all",),
            note=f"As released; capped_recall is its HR. {_SAMPLED}",
        ),
    )
}


def protocol(name: str) -> Protocol:
    """The protocol called ``name``; ``sampled-N`` for any N.

    Raises:
        ConfigError: there is none; with the closest known one.
    """
    if found := re.fullmatch(r"sampled-([1-9][0-9]*)", name):
        return Protocol(name, None, negatives=int(found.group(1)), note=_SAMPLED)
    if name not in _PROTOCOLS:
        raise ConfigError(f"There is no protocol {name!r}.", did_you_mean(name, [*_PROTOCOLS, "sampled-100"]))
    return _PROTOCOLS[name]


def split_for(name: str, dataset: Dataset, **params: Any) -> Split:
    """The split of a protocol, or the split called ``name``.

    Raises:
        ConfigError: an unknown name, or a protocol that fits any split.
        ConfigError, DataError: as `rediffuse.data.split.by_name`.
    """
    if name.startswith(("paper:", "sampled-")):  # the other protocols are called as their splits
        rules = protocol(name)
        if rules.split is None:
            raise ConfigError(
                f"Protocol {name!r} fits any split, so it does not say which.",
                f"Train on a split, for example global-time, and evaluate with --protocol {name}.",
            )
        name = rules.split
    return by_name(name, dataset, **params)


def among_sampled(score: Score, task: Task, negatives: int, num_items: int, seed: int = 0, clean: bool = True) -> Score:
    """``score``, with -inf for all but each person's true items and ``negatives`` others, drawn evenly without repeats.

    Drawn from what the person neither touched (unless not ``clean``) nor is to find; fewer where fewer are left. A
    person's draw depends on ``seed`` and the person's number alone.
    """
    seen = task.histories.without_synthetic() if task.seen is None else task.seen

    def sampled(histories: Histories, start: int) -> Tensor:
        scores = score(histories, start)
        kept = torch.zeros(scores.shape, dtype=torch.bool)
        for row in range(len(histories)):
            place = start + row
            true = task.truth.row(place)
            taken = np.union1d(seen.row(place), true) if clean else true
            drawn = _draw(np.unique(taken), negatives, num_items, (seed, int(task.users[place])))
            kept[row, torch.from_numpy(np.concatenate((true, drawn)).astype(np.int64))] = True
        return scores.masked_fill(~kept.to(scores.device), -torch.inf)

    return sampled


def _draw(taken: NDArray[np.int32], count: int, num_items: int, seed: tuple[int, int]) -> NDArray[np.int64]:
    """``count`` different items, or as many as there are, none of ``taken`` (sorted, distinct)."""
    left = num_items - len(taken)
    chosen = np.random.default_rng(seed).choice(left, size=min(count, left), replace=False)
    # The n-th item that is not taken: n plus the number of taken items before it.
    return chosen + np.searchsorted(taken - np.arange(len(taken)), chosen, side="right")
