"""The options of re-ranking in a request, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rediffuse.arguments import described, require_integer, require_number, require_text, wrong_type
from rediffuse.errors import ConfigError, did_you_mean
from rediffuse.reranking.columns import ItemColumns
from rediffuse.reranking.greedy import Reranking
from rediffuse.reranking.limits import ValueLimit
from rediffuse.reranking.slates import Calibration, Determinant, MarginalRelevance, SetSimilarity, VectorSimilarity

SlateName = Literal["mmr", "dpp", "calibrated"]
SLATES: tuple[str, ...] = get_args(SlateName)


@dataclass(frozen=True)
class RerankingOptions:
    """What `recommend` and `evaluate` say about lists as a whole.

    Attributes:
        max_per: column of the item table -> the most items of one value in a list.
        diversity: 0 to 1, the weight of the rule against relevance; None: no rule.
        diversity_by: column of the item table; None: the item vectors.
        slate: the rule, one of `SLATES`; None: mmr, if there is a weight.
    """

    max_per: Mapping[str, int] | None = None
    diversity: float | None = None
    diversity_by: str | None = None
    slate: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The options, ready for JSON."""
        return {
            "max_per": dict(self.max_per or {}),
            "diversity": float(self.diversity or 0),
            "diversity_by": self.diversity_by,
            "slate": self.slate,
        }


def reranking_of(
    options: RerankingOptions, columns: ItemColumns, directions: Callable[[], NDArray[np.float32]]
) -> Reranking | None:
    """How lists are made; None if the options ask for nothing.

    Args:
        options: as a caller gave them.
        columns: the item table.
        directions: makes the item vectors (num_items, d) of length one.

    Raises:
        ConfigError: an option has a wrong type or value, or no effect without another; there is no item table, or it
            has no such column; or the model has no item vectors.
    """
    limits = require_max_per(options.max_per, columns)
    weight = 0.0 if options.diversity is None else require_diversity(options.diversity)
    slate, by = require_text("slate", options.slate), require_text("diversity_by", options.diversity_by)
    if slate is not None and slate not in SLATES:
        raise ConfigError(f"There is no slate {slate!r}.", did_you_mean(slate, SLATES))
    for name, value in (("slate", slate), ("diversity_by", by)):
        if value is not None and options.diversity is None:
            raise ConfigError(
                f"{name} is {value!r}, which has no effect without diversity.",
                "Give diversity too, from 0 (relevance alone) to 1; 0.3 is a moderate one.",
            )
    if slate == "calibrated" and by is None:
        raise ConfigError(
            "Calibrated lists need diversity_by: the column whose shares in the history a list should have.",
            "For example diversity_by='genres'."
            if columns.table is None
            else f"The item table has {', '.join(columns.table.columns[1:])}.",
        )
    sets = None if by is None else columns.sets(by, "diversity_by")
    if not weight:
        return Reranking(limits) if limits else None
    if slate == "calibrated":
        assert sets is not None
        return Reranking(limits, Calibration(sets), weight)
    similarity = VectorSimilarity(directions()) if sets is None else SetSimilarity(sets)
    return Reranking(limits, Determinant(similarity) if slate == "dpp" else MarginalRelevance(similarity), weight)


def require_max_per(value: Any, columns: ItemColumns) -> list[ValueLimit]:
    """The limits of a mapping from columns of the item table to the most items of one value.

    Raises:
        ConfigError: it is something else, there is no item table, or it has no such column.
    """
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise wrong_type("max_per", value, "a mapping", 'For example max_per={"category": 2}.')
    return [
        columns.limit(column, require_integer(f"max_per of column {column!r}", limit), "max_per")
        for column, limit in value.items()
    ]


def require_diversity(value: Any) -> float:
    """The diversity, from 0 to 1.

    Raises:
        ConfigError: it is something else.
    """
    found = require_number("diversity", value)
    if not 0 <= found <= 1:
        raise ConfigError(f"diversity is {described(value)}.", "Give a number from 0 (the plain list) to 1.")
    return found
