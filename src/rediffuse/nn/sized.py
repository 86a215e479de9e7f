"""Weights whose size is known only from the data, or from the file that they are loaded from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SizedByData(nn.Module):
    """One tensor, ``value``, which is empty until it is `set` or loaded from a state dict.

    Loading refuses a tensor of another width, or with other rows, than given here.

    Args:
        trained: whether it is a parameter; otherwise a buffer.
        dtype: dtype of the tensor.
        rows: its first dimension; None: any.
        columns: its second dimension; None: any, or it has only one.
    """

    value: Tensor

    def __init__(
        self,
        trained: bool = True,
        dtype: torch.dtype = torch.float32,
        *,
        rows: int | None = None,
        columns: int | None = None,
    ) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        empty = torch.empty(0, dtype=dtype)
        if trained:
            self.value = nn.Parameter(empty)
        else:
            self.register_buffer("value", empty)

    def set(self, value: Tensor) -> None:
        """Store a copy of a tensor, on the device and in the dtype of the present value."""
        self.value.data = value.detach().to(self.value.device, self.value.dtype, copy=True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:  # pyright: ignore
        given = state_dict.get(f"{prefix}value")
        if given is not None and given.numel():
            for dimension, size in enumerate((self.rows, self.columns)):
                if size is not None and (given.dim() <= dimension or given.shape[dimension] != size):
                    others[-1].append(
                        f"{prefix}value has the shape {tuple(given.shape)}: dimension {dimension} is not {size}"
                    )
                    return
        if given is not None and given.shape != self.value.shape:
            self.set(torch.empty_like(given))
        super()._load_from_state_dict(state_dict, prefix, *others)


def with_rows(tensor: Tensor, at: int, added: int) -> Tensor:
    """The tensor with ``added`` rows of zeros before row ``at``."""
    return torch.cat((tensor[:at], tensor.new_zeros(added, *tensor.shape[1:]), tensor[at:]))
