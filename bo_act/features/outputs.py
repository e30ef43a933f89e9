"""Output-distribution features: what a function does to a standard-normal input.

Bingham and Miikkulainen (2023), arXiv 2301.05785, describe an activation function by its outputs
at 1,000 random normal samples. Here the samples are the quantiles of the normal distribution:
without sampling noise, fewer samples say more.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from bo_act.activations.derivatives import Functions, values_and_slopes
from bo_act.dependencies.torch_state import plain_torch
from bo_act.features.table import Block

POINTS = 256
"""Points of the quantile grid."""

MOMENTS = ("mean", "deviation", "slope_mean", "slope_deviation")
"""Columns of the ``moments`` block."""


def normal_quantiles(points: int = POINTS) -> Tensor:
    """Return (points,) float64: the standard normal's quantiles at (i + 1/2) / points."""
    levels = (np.arange(points) + 0.5) / points
    return torch.from_numpy(norm.ppf(levels))


@plain_torch()
def output_blocks(catalogue: Functions) -> dict[str, Block]:
    """Compute the output features of N functions.

    Returns:
        ``outputs`` (N, 256): arcsinh of the value at the normal quantiles (arcsinh keeps
        values that grow like exp(exp(x)) inside float32; ``sinh`` gives them back).
        ``moments`` (N, 4): arcsinh of mean, deviation, mean slope and deviation of the slope
        under the same grid. Functions with anything not finite are missing, with the reason.
    """
    x = normal_quantiles()
    outputs = np.full((len(catalogue), POINTS), np.nan, dtype=np.float32)
    moments = np.full((len(catalogue), len(MOMENTS)), np.nan, dtype=np.float32)
    reasons = [""] * len(catalogue)
    for indices, value, slope in values_and_slopes(catalogue, x):
        summary = torch.stack([value.mean(1), value.std(1), slope.mean(1), slope.std(1)], dim=1)
        chunk_reasons = _reasons(value, slope, summary, x)
        for index, reason in zip(indices, chunk_reasons, strict=True):
            reasons[index] = reason
        good = [not reason for reason in chunk_reasons]
        rows = np.array(indices)[good]
        outputs[rows] = torch.asinh(value[good]).numpy()
        moments[rows] = torch.asinh(summary[good]).numpy()
    return {"outputs": Block(outputs, tuple(reasons)), "moments": Block(moments, tuple(reasons))}


def _reasons(value: Tensor, slope: Tensor, summary: Tensor, x: Tensor) -> list[str]:
    """Return why each row has no features, or ``""``."""
    reasons = [""] * len(value)
    for row in torch.nonzero(~torch.isfinite(summary).all(dim=1)).flatten().tolist():
        reasons[row] = _DEVIATION
    for what, numbers in (("slope", slope), ("value", value)):
        bad = ~torch.isfinite(numbers)
        first = bad.int().argmax(dim=1)
        for row in torch.nonzero(bad.any(dim=1)).flatten().tolist():
            reasons[row] = _not_finite(what, float(x[first[row]]))
    return reasons


_DEVIATION = "deviation is not finite, though value and slope are"


@cache
def _not_finite(what: str, where: float) -> str:
    # Cached, so that functions with the same reason share one text.
    return f"{what} is not finite, first at x = {where:.3g}"
