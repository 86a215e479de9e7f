"""Weights whose size is known only from the data, or from the file that they are loaded from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SizedByData(nn.Module):
    """One tensor, ``value``, which is empty until it is `set` or loaded from a state dict.

    Args:
        trained: whether it is a parameter; otherwise a buffer.
        dtype: dtype of the tensor.
    """

    value: Tensor

    def __init__(self, trained: bool = True, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        empty = torch.empty(0, dtype=dtype)
        if trained:
            self.value = nn.Parameter(empty)
        else:
            self.register_buffer("value", empty)

    def set(self, value: Tensor) -> None:
        """Store a copy of a tensor, on the device and in the dtype of the present value."""
        self.value.data = value.detach().to(self.value.device, self.value.dtype, copy=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        if (given := state_dict.get(f"{prefix}value")) is not None and given.shape != self.value.shape:
            self.set(torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *others)
