"""Numbers narrower than float32."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16"]

_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def narrow_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """Return the dtype of matrix products and convolutions, None for float32.

    ``auto`` is bfloat16 on a GPU that has it.
    """
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_it else None
    return _NARROW.get(precision)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a network computes."""
    dtype = narrow_dtype(device, precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Return what keeps float16 gradients from vanishing; it does nothing for other dtypes."""
    enabled = narrow_dtype(device, precision) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=enabled)
