"""Types of interactions: what each is worth, and which of them are to be predicted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rediffuse.arguments import wrong_type
from rediffuse.errors import ConfigError, DataError, closest
from rediffuse.readers.columns import Column, Pieces, joined
from rediffuse.readers.report import ReadReport

# Types that an error or note lists; a column of other content may have any number.
_LISTED = 20


@dataclass(frozen=True)
class Events:
    """What types of interactions mean, as arguments of `rediffuse.read_interactions`.

    Attributes:
        weights: type -> weight, which is stored as the rating; 0 drops the interactions. None: no weights.
        targets: types that are truth in validation and test; None: all are.
    """

    weights: dict[str, float] | None = None
    targets: tuple[str, ...] | None = None

    @staticmethod
    def of(event_type: str | None, weights: Any, target_events: Any, rating: str | None) -> Events:
        """Check the arguments.

        Raises:
            ConfigError: they have the wrong type, are out of range, or do not go together.
        """
        for name, value in (("weights", weights), ("target_events", target_events)):
            if value is not None and event_type is None:
                raise ConfigError(
                    f"{name} was given without a column of interaction types.",
                    'Name the column: event_type="event" (--event-type event).',
                )
        if event_type is not None and weights is None and target_events is None:
            raise ConfigError(
                f"event_type={event_type!r} was given, but not what the types mean.",
                'Pass weights={"view": 1, "purchase": 5} (--weights "view=1,purchase=5"), or '
                'target_events="purchase" (--target-event purchase), or both.',
            )
        if weights is not None and rating is not None:
            raise ConfigError(
                f"Both a rating column ({rating!r}) and weights of interaction types were given.",
                "An interaction has one rating: leave out one of them.",
            )
        made = Events(_weights(weights), _targets(target_events))
        for name in made.targets or ():
            if made.weights is not None and not made.weights.get(name, 0):
                found = "has the weight 0, so it is dropped" if name in made.weights else "has no weight"
                raise ConfigError(f"The target event {name!r} {found}.", f"Give it one, for example {name}=1.")
        return made

    def read(
        self, column: Pieces, report: ReadReport
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
        """Weights (rows,), whether each row is a target, and whether it stays; None where that was not asked for.

        Raises:
            DataError: a type has no weight, a target event does not occur, or a value is missing.
        """
        codes: dict[str, int] = {}

        def numbered(piece: Column) -> NDArray[np.int32]:
            names = piece.complete().cast(pl.String)
            for name in names.unique(maintain_order=True):
                codes.setdefault(name, len(codes))
            return names.replace_strict(codes, return_dtype=pl.Int32).to_numpy()

        found = joined(column, numbered, np.int32)
        sizes = np.bincount(found, minlength=len(codes))
        counts = dict(sorted(zip(codes, sizes.tolist(), strict=True), key=lambda pair: -pair[1]))
        where = f"{column.table.name}: column {column.name!r} (event_type)"
        weights = targets = kept = None
        if self.weights is not None:
            if unnamed := [name for name in counts if name not in self.weights]:
                raise DataError(
                    f"{where} holds {_listed(unnamed)}, without a weight. All values: {_counted(counts)}.",
                    f"Add {unnamed[0]}=1 to weights, or {unnamed[0]}=0 to drop these interactions.",
                )
            weights = np.asarray([self.weights[name] for name in codes], dtype=np.float32)[found]
            kept = weights > 0
        if self.targets is not None:
            for name in self.targets:
                if name not in counts:
                    close = closest(name, counts)
                    hint = f" Did you mean {close!r}?" if close else ""
                    raise DataError(
                        f"{where} holds no {name!r}, the target event. All values: {_counted(counts)}.",
                        f"Name one of these.{hint}",
                    )
            targets = np.isin(found, [codes[name] for name in self.targets])
        self._note(counts, report)
        return weights, targets, kept

    def _note(self, counts: dict[str, int], report: ReadReport) -> None:
        report.values["events"] = dict(list(counts.items())[: max(_LISTED, len(self.weights or ()))])
        if self.weights is None:
            report.note(f"Types of interactions: {_counted(counts)}.")
            return
        read = ", ".join(f"{name} as {self.weights[name]:g} ({count:,})" for name, count in counts.items())
        report.note(f"Types of interactions were read as ratings: {read}.")
        if dropped := {name: count for name, count in counts.items() if not self.weights[name]}:
            total = sum(dropped.values())
            report.values["dropped_events"] = total
            report.note(f"{total:,} interactions with the weight 0 were dropped: {_counted(dropped)}.")
        if absent := [name for name in self.weights if name not in counts]:
            report.note(f"Weights were given for {_listed(absent)}, which the data do not have.")


def _weights(weights: Any) -> dict[str, float] | None:
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        raise wrong_type("weights", weights, "a dict of numbers", 'For example: weights={"view": 1, "purchase": 5}.')
    made: dict[str, float] = {}
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float | np.integer | np.floating) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise ConfigError(
                f"The weight of {name!r} is {weight!r}.", "Weights are numbers >= 0; 0 drops the interactions."
            )
        made[str(name)] = float(weight)
    if not any(made.values()):
        raise ConfigError("No weight is above 0, so every interaction would be dropped.", "Give at least one weight.")
    return made


def _targets(target_events: Any) -> tuple[str, ...] | None:
    if target_events is None:
        return None
    names = [target_events] if isinstance(target_events, str) else target_events
    if not isinstance(names, Iterable) or isinstance(names, Mapping):
        raise wrong_type("target_events", target_events, "a name or a list of names", 'For example: "purchase".')
    made = tuple(dict.fromkeys(str(name) for name in names))
    if not made:
        raise ConfigError("target_events is empty.", "Name an event, or leave the argument out.")
    return made


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def _counted(counts: dict[str, int]) -> str:
    shown = [f"{name!r} ({count:,})" for name, count in list(counts.items())[:_LISTED]]
    more = f" and {len(counts) - _LISTED:,} more" if len(counts) > _LISTED else ""
    return ", ".join(shown) + more
