"""D3Rec: DiffRec with a knob for diversity at inference (Han et al., KDD 2025, arXiv 2411.11240).

The network also reads the user's category preference p, the share of each category among the user's items, and is
trained without it now and then. At inference it is guided, x0_hat = (1 + w) f(x, p) - w f(x), and p is replaced by
p^(1/tau), normalised: a temperature tau above 1 flattens the preference, so that lists get more categories.

The paper also disentangles a part of the hidden layers for categories, with three auxiliary losses and weights of the
items by category; here the condition is one more input of DiffRec's first layer, and the loss is DiffRec's.

Ablation (no diffusion): ``diffusion=false``, as in DiffRec. With ``condition_dropout=1`` it is DiffRec.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rediffuse.batching.matrix import shape_of
from rediffuse.batching.rows import RowBatch
from rediffuse.config import Range
from rediffuse.data.features import MOST_VALUES, most_common, sets_of
from rediffuse.diffusion import classifier_free, condition_dropout
from rediffuse.diffusion.solvers import Network
from rediffuse.errors import ConfigError, DataError, RediffuseWarning, did_you_mean
from rediffuse.models.base import TrainingData
from rediffuse.models.diffrec import DiffRec, DiffRecConfig
from rediffuse.models.sampling import Sampling
from rediffuse.nn import SizedByData

# Added to every share before it is tempered, as released: a category that the user does not know can gain.
FLOOR = 1e-7
SMALLEST_TEMPERATURE = 1e-6
_RELEASED = {"metric": "recall@20/unseen", "patience": 25, "validate_every": 2}


class D3RecConfig(DiffRecConfig):
    """Options of D3Rec beside those of DiffRec. ``temperature`` and ``guidance_scale`` can be given per request."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": _RELEASED,
        "released": _RELEASED | {"fidelity": "released"},
        "paper:ml-1m": _RELEASED
        | {"learning_rate": 5e-5, "weight_decay": 1e-3, "hidden_sizes": (200, 600), "dropout": 0.3}
        | {"diffusion_steps": 5, "noise_scale": 1.0, "noise_min": 5e-3, "noise_max": 0.05}
        | {"condition_dropout": 0.3, "guidance_scale": -0.5},
    }
    search: ClassVar = DiffRecConfig.search | {
        "condition_dropout": (0.1, 0.3, 0.5),
        "guidance_scale": Range(-0.5, 1.0),
    }

    category_column: str = Field("genres", description="Column of the item table that holds the categories.")
    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of rows trained without their condition; 1: it is DiffRec."
    )
    guidance_scale: float = Field(
        0.0, ge=-1, description="Weight w of the guidance at inference; 0: the condition alone, -1: without it."
    )
    temperature: float = Field(
        1.0, gt=0, description="tau at inference; above 1, the preference is flatter and lists are more diverse."
    )


class D3Rec(DiffRec):
    """DiffRec guided by the categories of a user's items, whose temperature steers how diverse the lists are.

    Attributes:
        categories: (num_items, C) what share of an item each category has; zeros for an item without categories.
        condition: (C, H) weights of the first layer for the preference.
    """

    name = "d3rec"
    Config = D3RecConfig
    reads_tables = True
    config: D3RecConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: D3RecConfig, num_items: int, num_users: int = 0) -> None:
        super().__init__(config, num_items, num_users)
        self.categories = SizedByData(trained=False, rows=num_items)
        self.condition = SizedByData(columns=config.hidden_sizes[-1])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        shares, weights = (state_dict.get(f"{prefix}{name}.value") for name in ("categories", "condition"))
        if shares is not None and weights is not None and shares.shape[1:] != weights.shape[:1]:
            others[-1].append(
                f"{prefix}condition.value has the shape {tuple(weights.shape)}, and there are {shares.shape[1]} "
                "categories"
            )
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def has_guidance(self) -> bool:  # type: ignore[override]
        return self.config.condition_dropout < 1

    def check(self, data: TrainingData) -> None:
        super().check(data)
        table, column = data.item_table, self.config.category_column
        if table is None:
            raise DataError(
                f"{self.name} reads the categories of items, and the data have no item table.",
                "Give one with --items (Python: items=...), and name its column of categories: category_column=NAME.",
            )
        if column not in table.columns:
            raise ConfigError(
                f"The item table has no column {column!r}, which category_column names.",
                did_you_mean(column, table.columns[1:]),
            )
        sets = sets_of(table[column])
        without = int((~most_common(sets, MOST_VALUES).any(1)).sum())
        if without == self.num_items:
            raise DataError(
                f"Column {column!r} of the item table holds no value.", "Name another with category_column=NAME."
            )
        found = []
        _, values = shape_of(sets)
        if values > MOST_VALUES:
            found.append(f"it has {values:,} values, of which the {MOST_VALUES} most common are categories")
        if without:
            found.append(f"{without:,} of {self.num_items:,} items have no category, and count for no preference")
        if found:
            warnings.warn(f"Column {column!r} of the item table: {'; '.join(found)}.", RediffuseWarning, stacklevel=2)

    def fit(self, data: TrainingData) -> None:
        super().fit(data)
        assert data.item_table is not None
        sets = most_common(sets_of(data.item_table[self.config.category_column]), MOST_VALUES)
        shares = torch.from_numpy(sets / np.maximum(sets.sum(1, keepdims=True), 1))
        self.categories.set(shares)
        weights = torch.empty(shares.shape[1], self.config.hidden_sizes[-1])
        self.condition.set(nn.init.xavier_normal_(weights))

    def preference(self, rows: RowBatch) -> Tensor:
        """(B, C) the share of each category in rows; zeros where no item has one."""
        total = F.embedding_bag(
            rows.items, self.categories.value, rows.offsets, mode="sum", per_sample_weights=rows.values
        )
        return total / total.sum(1, keepdim=True).clamp_min(1e-12)

    def shift(self, preference: Tensor) -> Tensor:
        """(B, H) what preferences (B, C) add in the first layer.

        Shares are small beside the ones in a row, and Adam moves all weights as fast. Without the factor, the network
        hardly reads the preference.
        """
        return preference @ self.condition.value * preference.shape[1] ** 0.5

    def training_shift(self, batch: RowBatch) -> Tensor | None:
        rate = self.config.condition_dropout
        if rate == 1:
            return None
        preference = self.preference(batch)
        if rate:
            dropped = condition_dropout(len(batch), rate, device=preference.device)
            preference = preference.masked_fill(dropped[:, None], 0.0)
        return self.shift(preference)

    def with_guidance(self, network: Callable[..., Tensor], rows: RowBatch, sampling: Sampling) -> Network:
        if self.config.condition_dropout == 1:
            return network
        temperature, scale = sampling.temperature, sampling.guidance_scale
        temperature = self.config.temperature if temperature is None else temperature
        shift = self.shift(tempered(self.preference(rows), temperature))
        scale = self.config.guidance_scale if scale is None else scale
        return classifier_free(lambda x, t: network(x, t, shift), network, scale)


def tempered(preference: Tensor, temperature: float) -> Tensor:
    """p^(1/tau), normalised: (B, C) shares that are flatter above temperature 1, sharper below. Rows of zeros stay."""
    if temperature == 1:
        return preference
    known = preference.sum(1, keepdim=True) > 0
    logits = (preference + FLOOR).log()
    # Below the smallest temperature only the largest share is left, and a division would overflow.
    logits = (logits - logits.amax(1, keepdim=True)) / max(temperature, SMALLEST_TEMPERATURE)
    return torch.softmax(logits, dim=1) * known
