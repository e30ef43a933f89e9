"""Output-distribution features: what a function does to a standard-normal input.

The idea of describing an activation function by its outputs is that of Bingham and Miikkulainen
(2023), arXiv 2301.05785, who take 1,000 random normal samples. Here the samples are the quantiles
of the normal distribution: no sampling noise, and fewer of them say more.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from bo_act.activations.catalogue import Catalogue
from bo_act.activations.expressions import Expression
from bo_act.activations.module import evaluate
from bo_act.features.table import Block

POINTS = 256
"""Points of the quantile grid."""

MOMENTS = ("mean", "deviation", "slope_mean", "slope_deviation")
"""Columns of the ``moments`` block."""


def normal_quantiles(points: int = POINTS) -> Tensor:
    """Return (points,) float64: the standard normal's quantiles at (i + 1/2) / points."""
    levels = (np.arange(points) + 0.5) / points
    return torch.from_numpy(norm.ppf(levels))


def value_and_slope(expression: Expression, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and f'(x) elementwise, the slope as autograd gives it.

    Args:
        expression: the function f.
        x: (points,) floating.
    """
    x = x.detach().clone().requires_grad_()
    value = evaluate(expression, x)
    if not value.requires_grad:  # a constant
        return value.detach(), torch.zeros_like(value)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def output_blocks(catalogue: Catalogue) -> dict[str, Block]:
    """Compute the output features of all N functions of a catalogue.

    Returns:
        ``outputs`` (N, 256): arcsinh of the value at the normal quantiles (arcsinh keeps
        values that grow like exp(exp(x)) inside float32; ``sinh`` gives them back).
        ``moments`` (N, 4): arcsinh of mean, deviation, mean slope and deviation of the slope
        under the same grid. Functions for which any of this is not finite are missing, with
        the reason.
    """
    x = normal_quantiles()
    outputs = np.full((len(catalogue), POINTS), np.nan, dtype=np.float32)
    moments = np.full((len(catalogue), len(MOMENTS)), np.nan, dtype=np.float32)
    reasons = [""] * len(catalogue)
    for index in range(len(catalogue)):
        value, slope = value_and_slope(catalogue.expression(index), x)
        for what, row in (("value", value), ("slope", slope)):
            bad = ~torch.isfinite(row)
            if bad.any() and not reasons[index]:
                where = float(x[bad][0])
                reasons[index] = f"{what} is not finite, first at x = {where:.3g}"
        summary = torch.stack([value.mean(), value.std(), slope.mean(), slope.std()])
        if not reasons[index] and not torch.isfinite(summary).all():
            reasons[index] = "deviation is not finite, though value and slope are"
        if reasons[index]:
            continue
        outputs[index] = torch.asinh(value).numpy()
        moments[index] = torch.asinh(summary).numpy()
    return {"outputs": Block(outputs, tuple(reasons)), "moments": Block(moments, tuple(reasons))}
