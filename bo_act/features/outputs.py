"""Output-distribution features: what a function does to a standard-normal input.

The idea of describing an activation function by its outputs is that of Bingham and Miikkulainen
(2023), arXiv 2301.05785, who take 1,000 random normal samples. Here the samples are the quantiles
of the normal distribution: no sampling noise, and fewer of them say more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from typing import Protocol

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from bo_act.activations.expressions import Expression
from bo_act.activations.module import evaluate, plan
from bo_act.activations.operators import OPERATORS
from bo_act.features.table import Block
from bo_act.torch_state import plain_torch

POINTS = 256
"""Points of the quantile grid."""

MOMENTS = ("mean", "deviation", "slope_mean", "slope_deviation")
"""Columns of the ``moments`` block."""


def normal_quantiles(points: int = POINTS) -> Tensor:
    """Return (points,) float64: the standard normal's quantiles at (i + 1/2) / points."""
    levels = (np.arange(points) + 0.5) / points
    return torch.from_numpy(norm.ppf(levels))


@plain_torch()
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


class Functions(Protocol):
    """N functions by index; a ``Catalogue`` is one."""

    def __len__(self) -> int: ...

    def expression(self, index: int) -> Expression:
        """Return a spelling of a function."""
        ...


@plain_torch()
def output_blocks(catalogue: Functions) -> dict[str, Block]:
    """Compute the output features of N functions.

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
    for operands, functions in _by_structure(catalogue).items():
        for start in range(0, len(functions), _CHUNK):
            codes, indices = zip(*functions[start : start + _CHUNK], strict=True)
            value, slope = _values_and_slopes(operands, codes, x)
            summary = torch.stack([value.mean(1), value.std(1), slope.mean(1), slope.std(1)], dim=1)
            chunk_reasons = _reasons(value, slope, summary, x)
            for index, reason in zip(indices, chunk_reasons, strict=True):
                reasons[index] = reason
            good = [not reason for reason in chunk_reasons]
            rows = np.array(indices)[good]
            outputs[rows] = torch.asinh(value[good]).numpy()
            moments[rows] = torch.asinh(summary[good]).numpy()
    return {"outputs": Block(outputs, tuple(reasons)), "moments": Block(moments, tuple(reasons))}


# --- many functions at once -----------------------------------------------------------------

# Functions evaluated at once: a tensor of 512 rows is 1 MB.
_CHUNK = 512
_CODES = {name: code for code, name in enumerate(OPERATORS)}
_FUNCTIONS: list[Callable[..., Tensor]] = [operator.function for operator in OPERATORS.values()]

_Operands = tuple[tuple[int, ...], ...]


def _by_structure(catalogue: Functions) -> dict[_Operands, list[tuple[bytes, int]]]:
    """Sort functions by the structure of their trees.

    Returns:
        The operands of each step (numbers of earlier values, 0 is x) → for each function of
        that structure, the operators of the steps as one byte each, and its index. In order, so
        that neighbours have most of their operators in common.
    """
    found: dict[_Operands, list[tuple[bytes, int]]] = defaultdict(list)
    for index in range(len(catalogue)):
        steps = plan(catalogue.expression(index))
        codes = bytes([_CODES[name] for name, _ in steps])
        found[tuple(operands for _, operands in steps)].append((codes, index))
    for functions in found.values():
        functions.sort()
    return found


def _values_and_slopes(
    operands: _Operands, codes: Sequence[bytes], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return values and slopes of functions of one structure, both (functions, points)."""
    start = x.repeat(len(codes), 1).requires_grad_()
    values = [start]
    for step, places in enumerate(operands):
        names = np.array([code[step] for code in codes])
        values.append(_apply(names, [values[place] for place in places]))
    value = values[-1]
    if not value.requires_grad:  # constants
        return value.detach(), torch.zeros_like(value)
    (slope,) = torch.autograd.grad(value.sum(), start)
    return value.detach(), slope


def _apply(codes: np.ndarray, operands: Sequence[Tensor]) -> Tensor:
    """Apply to each row its own operator, given as (rows,) codes."""
    names, counts = np.unique(codes, return_counts=True)
    if len(names) == 1:
        return _FUNCTIONS[int(names[0])](*operands)
    order = torch.from_numpy(np.argsort(codes, kind="stable"))
    parts = [operand.index_select(0, order).split(counts.tolist()) for operand in operands]
    rows = zip(*parts, strict=True)
    results = [_FUNCTIONS[name](*row) for name, row in zip(names, rows, strict=True)]
    return torch.cat(results).index_select(0, torch.argsort(order))


def _reasons(value: Tensor, slope: Tensor, summary: Tensor, x: Tensor) -> list[str]:
    """Say of each row why it has no features, or ``""``."""
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
    # Kept, so that the many functions with one reason share one text.
    return f"{what} is not finite, first at x = {where:.3g}"
