"""maskdiff: masked diffusion over the items of a history (as MaskGR, arXiv 2511.23021, with items for its codes).

Forward, each item of a history is replaced by a mask with probability r ~ U(0, 1). A bidirectional transformer, that of
BERT4Rec, predicts the masked items from the others, and its cross entropy over the whole catalogue is weighted by 1/r,
which makes it a bound on the likelihood of the history (Shi et al., NeurIPS 2024, arXiv 2406.04329). Here the number of
masked items of a history is drawn, uniformly from 1 to its length L, and r is its share: the same expectation with less
variance (Nie et al. 2025, arXiv 2502.09992, eq. 6).

At inference a mask follows the history, and one pass predicts it: the next item alone needs no chain.

Ablation (no diffusion): with ``diffusion=false`` a fixed share of the items is masked and all weigh the same. That is
BERT4Rec.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from rediffuse.batching.sequences import SequenceBatch
from rediffuse.models.baselines.bert4rec import BERT4Rec, BERT4RecConfig
from rediffuse.models.sequence import Encoded

_PAPER: dict[str, Any] = {"mask_last": 0.0, "item_features": False, "repeat_bias": False, "temperature": None}


class MaskDiffConfig(BERT4RecConfig):
    """Options of maskdiff; ``mask_share`` is that of the ablation."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": _PAPER, "released": _PAPER}
    search: ClassVar = {name: domain for name, domain in BERT4RecConfig.search.items() if name != "mask_share"}

    diffusion: bool = Field(True, description="False: the ablation (no diffusion), BERT4Rec.")


class MaskDiff(BERT4Rec):
    """A bidirectional transformer that fills in histories of which a random share, from little to all, is masked."""

    name = "maskdiff"
    Config = MaskDiffConfig
    config: MaskDiffConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def choose_masked(self, real: Tensor) -> Tensor:
        if not self.config.diffusion:
            return super().choose_masked(real)
        # One draw for the batch, from which the others are equally far: their weights 1/r then vary less in sum.
        offsets = torch.randperm(len(real), device=real.device) / len(real)
        share = (torch.rand((), device=real.device) + offsets) % 1
        count = 1 + (share[:, None] * real.sum(1, keepdim=True)).long()
        order = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0).argsort(1).argsort(1)
        return (order < count) & real

    def encode(self, batch: SequenceBatch) -> Encoded:
        encoded = super().encode(batch)
        if not self.config.diffusion:
            return encoded
        # The sum over a history is L / masked times that of its cross entropies; the mean over all targets divides by
        # their number, so the factor n / (all items) makes it the sum per item.
        places = torch.arange(batch.items.shape[1], device=batch.items.device)
        real = ((places < batch.lengths[:, None]) & batch.learnable(len(places))).sum(1)
        masked = torch.bincount(batch.rows, minlength=len(real))
        inverse = (real / masked.clamp(min=1))[batch.rows]
        return dataclasses.replace(encoded, weights=inverse * len(batch.rows) / real.sum())
