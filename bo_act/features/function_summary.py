"""Summary of one function: its values, slopes and output features."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bo_act.activations.derivatives import value_and_slope
from bo_act.activations.evaluation import moments
from bo_act.activations.expressions import Expression, canonical
from bo_act.features.outputs import normal_quantiles
from bo_act.plot_style import COLOURS, DASHED, FAINT, colour_and_stroke, panels, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FunctionSummary:
    """A function on [-5, 5] and under a standard-normal input.

    Attributes:
        activation: text of the canonical form.
        x, value, slope: 401 points; not finite where the function is not.
        mean, variance: of the output under x ~ N(0, 1).
        slope_mean, slope_deviation: of the slope under the quantile grid.
        outputs: f at the 256 quantiles of the standard normal, the output features.
    """

    activation: str
    x: list[float]
    value: list[float]
    slope: list[float]
    mean: float
    variance: float
    slope_mean: float
    slope_deviation: float
    outputs: list[float]

    def rows(self) -> dict[str, str]:
        """Return the displayed facts by name."""
        finite = [v for v in self.value if math.isfinite(v)]
        span = f"{min(finite):.4g} to {max(finite):.4g}" if finite else "never finite"
        holes = len(self.value) - len(finite)
        return {
            "values on [-5, 5]": span + (f", not finite at {holes} of 401 points" if holes else ""),
            "mean under N(0, 1)": f"{self.mean:.6g}",
            "variance under N(0, 1)": f"{self.variance:.6g}",
            "mean slope": f"{self.slope_mean:.6g}",
            "deviation of slope": f"{self.slope_deviation:.6g}",
        }

    def as_json(self) -> dict[str, Any]:
        """Return everything, with null for what is not finite."""

        def plain(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "activation": self.activation,
            "mean": plain(self.mean),
            "variance": plain(self.variance),
            "slope_mean": plain(self.slope_mean),
            "slope_deviation": plain(self.slope_deviation),
            "x": self.x,
            "value": [plain(v) for v in self.value],
            "slope": [plain(v) for v in self.slope],
            "outputs": [plain(v) for v in self.outputs],
        }


def function_summary(expression: Expression) -> FunctionSummary:
    """Describe one function."""
    expression = canonical(expression)
    x = torch.linspace(-5.0, 5.0, 401, device="cpu", dtype=torch.float64)
    value, slope = value_and_slope(expression, x)
    outputs, normal_slope = value_and_slope(expression, normal_quantiles())
    mean, variance = moments(expression)
    return FunctionSummary(
        activation=str(expression),
        x=x.tolist(),
        value=value.tolist(),
        slope=slope.tolist(),
        mean=mean,
        variance=variance,
        slope_mean=float(normal_slope.mean()),
        slope_deviation=float(normal_slope.std()),
        outputs=outputs.tolist(),
    )


@styled
def draw(summary: FunctionSummary) -> Figure:
    """Draw value and slope."""
    figure, (axes,) = panels()
    axes.axhline(0, color=FAINT, linewidth=0.5)
    axes.axvline(0, color=FAINT, linewidth=0.5)
    axes.plot(summary.x, summary.value, label="value", **colour_and_stroke(0))
    axes.plot(summary.x, summary.slope, label="slope", color=COLOURS[1], linestyle=DASHED)
    axes.set_xlabel("pre-activation x")
    axes.set_title(summary.activation)
    axes.grid(visible=False)
    axes.legend()
    return figure
