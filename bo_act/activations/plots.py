"""Small graphs of functions, as SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression, parse
from bo_act.activations.scales import Scaled
from bo_act.html import Markup, escape
from bo_act.plot_style import COLOURS

REACH = 5.0
"""Graphs are drawn on [-5, 5]."""
_TALL = 6.0  # values beyond are ignored
_LEAST = 0.5  # height of a window, so that a constant is a line, not noise
_POINTS = 121

Floats = NDArray[np.float64]


def sample(expressions: Sequence[Expression | Scaled], points: int = _POINTS) -> Floats:
    """Evaluate n expressions on [-5, 5]: (n, points) float64, not finite where they are not."""
    x = torch.linspace(-REACH, REACH, points, device="cpu", dtype=torch.float64)
    values = [evaluate(expression, x).expand_as(x).numpy() for expression in expressions]
    return np.stack(values) if values else np.empty((0, points))


def windows(values: Floats) -> tuple[Floats, Floats]:
    """Return the lowest and the highest value that the graphs of (n, points) values show, (n,)."""
    seen = np.clip(np.where(np.isfinite(values), values, np.nan), -_TALL, _TALL)
    nothing = np.isnan(seen).all(axis=1)
    seen[nothing] = 0.0
    low, high = np.nanmin(seen, axis=1), np.nanmax(seen, axis=1)
    lack = np.maximum(_LEAST - (high - low), 0) / 2
    return low - lack, high + lack


def graph(
    expression: Expression | Scaled | str,
    *,
    beside: Expression | Scaled | str | None = None,
    others: Sequence[Scaled] = (),
    width: int = 180,
    height: int = 120,
    label: str = "",
) -> Markup:
    """Draw a function on [-5, 5] as an ``<svg>`` element.

    The curve has the class ``curve``, the one for comparison ``beside``; axes have the text's
    colour.

    Args:
        expression: to draw.
        beside: another one, drawn thin and dashed.
        others: further ones, drawn thin, such as those of other channels.
        width: in pixels.
        height: in pixels.
        label: text for screen readers; default: the expression.
    """
    given = [expression, *others, *([] if beside is None else [beside])]
    shown = [parse(e) if isinstance(e, str) else e for e in given]
    values = sample(shown)
    low, high = windows(values)
    lowest, highest = float(low.min()), float(high.max())
    margin = 0.06 * (highest - lowest)
    lowest, highest = lowest - margin, highest + margin

    def pixel(y: float) -> float:
        return height * (highest - y) / (highest - lowest)

    axes = f"M{width / 2:g} 0V{height}"
    if lowest < 0 < highest:
        axes += f"M0 {pixel(0):.1f}H{width}"
    curves = [
        f'<path class="beside" d="{path(row, lowest, highest, width, height)}" fill="none" '
        'stroke="currentColor" stroke-opacity="0.55" stroke-width="1.2" stroke-dasharray="3 3"/>'
        for row in values[1 + len(others) :]
    ]
    curves += [
        f'<path class="curve" d="{path(row, lowest, highest, width, height)}" fill="none" '
        f'stroke="{COLOURS[0]}" stroke-opacity="0.5" stroke-width="1"/>'
        for row in values[1 : 1 + len(others)]
    ]
    text = escape(label or _text(shown[0]), quote=True)
    return Markup(
        f'<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{text}"><title>{text}</title>'
        f'<path d="{axes}" fill="none" stroke="currentColor" stroke-opacity="0.22"/>'
        f"{''.join(curves)}"
        f'<path class="curve" d="{path(values[0], lowest, highest, width, height)}" fill="none" '
        f'stroke="{COLOURS[0]}" stroke-width="2" stroke-linejoin="round"/></svg>'
    )


def _text(function: Expression | Scaled) -> str:
    return str(function.expression if isinstance(function, Scaled) else function)


def path(row: Floats, low: float, high: float, width: float, height: float) -> str:
    """Return the path of values over equal steps of x; interrupted where they are not finite.

    Values outside the window are clipped just beyond it.
    """
    far = 3 * (high - low)
    y = np.clip(row, low - far, high + far)
    x = np.linspace(0, width, len(row))
    down = height * (high - y) / (high - low)
    parts, pen = [], False
    for column in range(len(row)):
        if not np.isfinite(row[column]):
            pen = False
            continue
        # At a pole the curve jumps from above the window to below.
        jump = (
            pen
            and (row[column - 1] - high) * (row[column] - low) < 0
            and _outside(row[column - 1], low, high)
            and _outside(row[column], low, high)
        )
        parts.append(f"{'L' if pen and not jump else 'M'}{x[column]:.1f} {down[column]:.1f}")
        pen = True
    return "".join(parts)


def _outside(value: float, low: float, high: float) -> bool:
    return bool(value < low or value > high)
