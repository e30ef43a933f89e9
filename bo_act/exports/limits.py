"""Finding where a function or its slope is not finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.expressions import Expression
from bo_act.activations.scales import Scaled

REACH = 1e4
"""How far from zero is looked."""


@dataclass(frozen=True)
class Interval:
    """An interval of values that are not finite; ``REACH`` at an open end."""

    low: float
    high: float

    def __str__(self) -> str:
        low, high = (0.0 if abs(end) < 1e-6 else end for end in (self.low, self.high))
        if self.low <= -REACH and self.high >= REACH:
            return "everywhere"
        if self.high >= REACH:
            return f"for x > {low:.4g}"
        if self.low <= -REACH:
            return f"for x < {high:.4g}"
        if self.high - self.low < 1e-3:
            return f"at x = {(low + high) / 2:.4g}"
        return f"for {low:.4g} < x < {high:.4g}"


def _grid() -> Tensor:
    far = torch.logspace(-6, 4, 2001, device="cpu", dtype=torch.float64)
    # Whole and half numbers among them, and 0.
    near = torch.arange(-12 * 256, 12 * 256 + 1, device="cpu", dtype=torch.float64) / 256
    points: Tensor = torch.cat([-far, near, far]).float().unique()
    return points


def notes(expression: Expression | Scaled) -> list[str]:
    """Describe where a function, or only its slope, is not finite in float32."""
    texts = []
    value, slope = intervals(expression)
    if value:
        texts.append(f"not finite in float32 {_listed(value)}")
    if slope:
        texts.append(f"its slope is not finite in float32 {_listed(slope)}")
    if not texts:
        texts.append(f"finite, with a finite slope, in float32 for all |x| <= {REACH:g}")
    return texts


def intervals(expression: Expression | Scaled) -> tuple[list[Interval], list[Interval]]:
    """Return where the value, and where only the slope, is not finite in float32."""
    x = _grid()

    def no_value(points: Tensor) -> Tensor:
        return ~torch.isfinite(value_and_slope(expression, points)[0])

    def no_slope(points: Tensor) -> Tensor:
        value, slope = value_and_slope(expression, points)
        return torch.isfinite(value) & ~torch.isfinite(slope)

    def where(test: Callable[[Tensor], Tensor]) -> list[Interval]:
        return [
            Interval(_edge(x, start, test, -1), _edge(x, end, test, 1))
            for start, end in _runs(test(x))
        ]

    return where(no_value), where(no_slope)


def _runs(bad: Tensor) -> list[tuple[int, int]]:
    """Return first and last index of each run of True."""
    padded = torch.nn.functional.pad(bad.int(), (1, 1))
    steps = padded.diff()
    starts = (steps == 1).nonzero().flatten().tolist()
    ends = (steps == -1).nonzero().flatten().tolist()
    return [(start, end - 1) for start, end in zip(starts, ends, strict=True)]


def _edge(x: Tensor, index: int, test: Callable[[Tensor], Tensor], step: int) -> float:
    """Bisect between the last bad point of a run and its good neighbour."""
    other = index + step
    if not 0 <= other < len(x):
        return step * REACH
    bad, good = float(x[index]), float(x[other])
    for _ in range(30):
        middle = (bad + good) / 2
        if bool(test(torch.tensor([middle], device="cpu", dtype=torch.float32))):
            bad = middle
        else:
            good = middle
    return bad


def _listed(intervals: list[Interval]) -> str:
    shown, more = ", ".join(map(str, intervals[:4])), len(intervals) - 4
    return f"{shown} and in {more} more places" if more > 0 else shown
