"""Optimizer, learning rates, precision and moving average of a training."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from bo_act.activations.scales import scale_parameters
from bo_act.errors import NetworkError
from bo_act.specs import TrainingSpec


def make_optimizer(network: nn.Module, spec: TrainingSpec) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe for a network.

    Raises:
        NetworkError: the network has no weights to train.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if not weights:
        raise NetworkError("expected a network with weights to train, got one without any")
    groups: Any = weights
    # Scales, shifts and biases have one axis; weight decay on them regularizes nothing, and would
    # change an activation function with learnt scales.
    scales = {id(scale) for scale in scale_parameters(network)}
    if spec.decay == "matrices" or scales:
        spared = [
            id(weight) in scales or (spec.decay == "matrices" and weight.ndim <= 1)
            for weight in weights
        ]
        groups = [
            {"params": [w for w, is_spared in zip(weights, spared, strict=True) if not is_spared]},
            {
                "params": [w for w, is_spared in zip(weights, spared, strict=True) if is_spared],
                "weight_decay": 0.0,
            },
        ]
        groups = [group for group in groups if group["params"]]
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return torch.optim.SGD(
        groups,
        lr=spec.learning_rate,
        momentum=spec.momentum,
        nesterov=spec.nesterov and spec.momentum > 0,
        weight_decay=spec.weight_decay,
    )


def moving_average(network: nn.Module, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of a network's weights, None for a decay of zero."""
    if decay == 0:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))


START_DIVISOR, END_DIVISOR = 25.0, 1e4  # of the one-cycle schedule, as in torch's OneCycleLR


def learning_rate(spec: TrainingSpec, *, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, out of ``steps`` in the whole run.

    ``one_cycle`` is torch's OneCycleLR (cosine, two phases; Smith and Topin 2018), but allows a
    warm-up of exactly one step. ``cosine`` rises linearly, then falls to zero by half a cosine
    (Loshchilov and Hutter 2017). ``constant`` has no warm-up. A cool-down at the end keeps the
    final rate.
    """
    if spec.schedule == "constant":
        return spec.learning_rate
    steps -= round(spec.cooldown * steps)
    low = spec.learning_rate / START_DIVISOR
    end = low / END_DIVISOR if spec.schedule == "one_cycle" else 0.0
    end = end if spec.final_learning_rate is None else spec.final_learning_rate
    if step >= steps:
        return end
    if spec.schedule == "cosine":
        rising = spec.warmup * steps
        if step < rising:
            return spec.learning_rate * min(1.0, (step + 1) / rising)
        return _cosine(spec.learning_rate, end, (step - rising) / (steps - rising))
    top = spec.warmup * steps - 1
    if step <= top:
        return _cosine(low, spec.learning_rate, step / top if top > 0 else 1.0)
    return _cosine(spec.learning_rate, end, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


Precision = Literal["auto", "float32", "bfloat16", "float16"]

_NARROW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def narrow_dtype(device: torch.device, precision: Precision) -> torch.dtype | None:
    """Return the dtype of matrix products and convolutions, None for float32.

    ``auto`` is bfloat16 on a GPU that supports it.
    """
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_it else None
    return _NARROW.get(precision)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of a network."""
    dtype = narrow_dtype(device, precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Return a gradient scaler for float16; it does nothing for other dtypes."""
    enabled = narrow_dtype(device, precision) == torch.float16
    return torch.amp.GradScaler(device.type, enabled=enabled)
