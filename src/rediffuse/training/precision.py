"""What a machine is given to compute with: number formats and memory."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def resolve_precision(wanted: str, device: torch.device) -> str:
    """ "auto" is bf16 where the device multiplies it in hardware, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if device.type == "cpu":
        # Without AVX512-BF16 or AMX a CPU converts back and forth and is slower than in fp32.
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Matrix products in bf16 if ``precision`` says so; sums, norms and the optimiser stay in fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
