"""The learnt scales of a trained network's activation functions, as stored in a trial."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from bo_act.activations.expressions import Expression, parse
from bo_act.activations.module import Activation
from bo_act.activations.scales import Scaled, scaled
from bo_act.errors import ExpressionError

LEARNT = "learnt_scales"
"""User attribute of a trial: what ``learnt_scales`` returns."""

_SHOWN = 5  # channels stored per function


@dataclass(frozen=True)
class Learnt:
    """The function of one place in a network, before and after training.

    Attributes:
        place: name of the module.
        before: the plain function.
        after: with the scales of the layer, or of some channels.
        channels: how many there are; None if the layer has one scale.
    """

    place: str
    before: Expression
    after: tuple[Scaled, ...]
    channels: int | None


def learnt_scales(network: nn.Module) -> list[dict[str, Any]]:
    """Return the scales of all functions of a network; of many channels an even selection."""
    learnt = []
    for name, module in network.named_modules():
        if not isinstance(module, Activation) or module.scales is None:
            continue
        values = module.scales.values().numpy()
        rows = np.unique(np.linspace(0, len(values) - 1, min(len(values), _SHOWN)).round())
        learnt.append(
            {
                "place": name,
                "function": str(module.expression),
                "operators": module.scale_operators,
                "channels": len(values) if module.learnable == "channel" else None,
                "scales": [[float(f"{v:.5g}") for v in values[int(row)]] for row in rows],
            }
        )
    return learnt


def read_learnt(attribute: object) -> list[Learnt]:
    """Read a trial's user attribute; skip anything else."""
    learnt = []
    for entry in attribute if isinstance(attribute, list) else ():
        try:
            function, scales = parse(entry["function"]), entry["scales"]
            rows = torch.tensor(scales, device="cpu", dtype=torch.float64)
            if not math.isfinite(float(rows.sum())):
                continue
            after = [scaled(function, row, operators=bool(entry["operators"])) for row in rows]
            learnt.append(Learnt(str(entry["place"]), function, tuple(after), entry["channels"]))
        except (KeyError, TypeError, ValueError, RuntimeError, ExpressionError):
            continue
    return learnt
