"""Stability: where a spelling fails although its function does not.

2 sigmoid(x) may be written ``div(expm1(x),sinh(x))``, which is 0 / 0 at zero and infinity by
infinity in the tails. Values and slopes of all subtrees are followed through the points of
``PROBES``, as torch computes them, by the chain rule: none of the expressions is built.

Symbols: R rows (distinct subtrees), Q probes, k operands, M tuples of operands.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.expressions import CONSTANTS, Expression
from bo_act.activations.operators import OPERATORS
from bo_act.dependencies.torch_state import plain_torch

ZEROS = (0.0, -0.0)
"""Where padding and zero biases put every network."""
TAILS = tuple(sign * size for size in (5.0, 10.0, 20.0, 50.0, 100.0, 1e4) for sign in (1, -1))
PROBES = (*ZEROS, *TAILS)
DTYPES = (torch.float64, torch.float32)

Rows = tuple[Tensor, Tensor, Tensor]
"""Values (R, Q), slopes (R, Q), and whether a gradient passes there (R, Q)."""

_CHUNK = 8_192  # tuples evaluated at once
_BASE = 64  # above every count: two dtypes have 2 · 12 tails


class Probes:
    """Values and slopes of R functions at the probes, in one dtype, by row number.

    Args:
        dtype: that all is computed in.
        limit: of the number of rows; row 0 is x.
    """

    def __init__(self, dtype: torch.dtype, limit: int) -> None:
        x = torch.tensor(PROBES, dtype=dtype, device="cpu")
        # Untouched memory costs nothing.
        self.values = x.new_empty(limit, len(x))
        self.slopes = x.new_empty(limit, len(x))
        # Whether a gradient passes. If not (constants, relu below zero), the slope is zero even if
        # the outer function has an infinite one.
        self.passes = torch.empty(self.values.shape, dtype=torch.bool, device="cpu")
        self.values[0], self.slopes[0], self.passes[0] = x, 1.0, True

    def rows(self, which: slice) -> Rows:
        """Return the values and slopes of some rows."""
        return self.values[which], self.slopes[which], self.passes[which]

    def keep(self, where: slice, rows: Rows, new: Tensor) -> None:
        """Write the new rows of a result of ``evaluate``."""
        for stored, part in zip(self.rows(where), rows, strict=True):
            stored.copy_(part[new])

    @plain_torch()
    def evaluate(self, name: str, tuples: np.ndarray) -> Rows:
        """Apply an operator to (k, M) operands.

        Returns:
            Values (M, Q), slopes (M, Q), and whether a gradient passes there (M, Q).
        """
        numbers = [torch.from_numpy(row) for row in tuples]
        operands = [self.values[row].requires_grad_() for row in numbers]
        value = OPERATORS[name].function(*operands)
        slope = torch.zeros_like(value)
        passes = torch.zeros(value.shape, dtype=torch.bool, device="cpu")
        if name in CONSTANTS:
            return value.detach(), slope, passes
        partials = torch.autograd.grad(value.sum(), operands, retain_graph=True)
        # Zero under an infinite gradient means masked, not multiplied by zero.
        endless = torch.autograd.grad(value, operands, torch.full_like(value, torch.inf))
        for partial, most, row in zip(partials, endless, numbers, strict=True):
            inner = self.slopes[row]
            masked = (partial == 0) & (most == 0)
            slope += torch.where(self.passes[row], partial * inner, 0.0)
            passes |= self.passes[row] & ~(masked & torch.isfinite(inner))
        return value.detach(), slope, passes


def faults(name: str, tuples: np.ndarray, probes: tuple[Probes, ...]) -> np.ndarray:
    """Return how unstable an operator is at each of (k, M) operands; 0 is not at all.

    Counts what is not finite in both dtypes. A value at zero outweighs any number of slopes there,
    those outweigh values in the tails, and those outweigh slopes in the tails.

    Returns:
        (M,) int64.
    """
    counts = np.empty(tuples.shape[1], dtype=np.int64)
    for start in range(0, tuples.shape[1], _CHUNK):
        chunk = slice(start, start + _CHUNK)
        rows = [probe.evaluate(name, tuples[:, chunk]) for probe in probes]
        counts[chunk] = sum(_counts(value, slope) for value, slope, _ in rows)
    return counts


def faults_of(expression: Expression) -> int:
    """Return how unstable an expression is by autograd; see ``faults``."""
    probed = (
        value_and_slope(expression, torch.tensor(PROBES, dtype=dtype, device="cpu"))
        for dtype in DTYPES
    )
    return sum(int(_counts(value[None], slope[None])[0]) for value, slope in probed)


def _counts(value: Tensor, slope: Tensor) -> np.ndarray:
    zeros, tails = slice(0, len(ZEROS)), slice(len(ZEROS), None)
    no_value = ~torch.isfinite(value)
    no_slope = no_value | ~torch.isfinite(slope)  # a slope is worth nothing without a value
    total = np.zeros(len(value), dtype=np.int64)
    for places in (zeros, tails):
        for bad in (no_value, no_slope):
            total = total * _BASE + bad[:, places].sum(dim=1).numpy()
    return total
