"""The number format of training: fp32 or bf16."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The precision to use: "auto" becomes bf16 if the device multiplies bf16 in hardware, otherwise fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Without AVX512-BF16 or AMX, a CPU converts to fp32 and back, which is slower than fp32.
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """A context for matrix products in bf16, if that is the precision; sums, norms and the optimiser stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
