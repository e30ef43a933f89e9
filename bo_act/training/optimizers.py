"""What changes a network's weights: optimizer and moving average."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

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
    if spec.decay == "matrices":
        # Scales, shifts and biases have one axis; to shrink them regularizes nothing.
        groups = [
            {"params": [weight for weight in weights if weight.ndim > 1]},
            {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
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
