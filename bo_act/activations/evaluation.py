"""Evaluating expressions, and the moments of their outputs."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from bo_act.activations.expressions import Expression, X
from bo_act.activations.operators import OPERATORS
from bo_act.activations.scales import Scaled, distinct_nodes

Step = tuple[str, tuple[int, ...]]
"""An operator, and the places of its operands among the values before."""


def plan(expression: Expression) -> list[Step]:
    """Order the distinct operators so that each follows its operands.

    Step k computes value k + 1; value 0 is x. Equal subtrees are computed once.
    """
    position: dict[Expression, int] = {}
    steps: list[Step] = []
    for node in expression.nodes():
        if node in position:
            continue
        if node.arguments:
            steps.append((node.name, tuple(position[a] for a in node.arguments)))
            position[node] = len(steps)
        else:
            position[node] = 0
    return steps


def evaluate(function: Expression | Scaled, x: Tensor) -> Tensor:
    """Evaluate a function elementwise, in the dtype of ``x``."""
    if isinstance(function, Scaled):
        return _evaluate_scaled(function, x)
    values = [x]
    for name, operands in plan(function):
        values.append(OPERATORS[name].function(*[values[i] for i in operands]))
    return values[-1]


def _evaluate_scaled(function: Scaled, x: Tensor) -> Tensor:
    factors = [function.factors.get(node, 1.0) for node in distinct_nodes(function.expression)]
    values = [x * function.factors.get(X, 1.0)]
    for (name, operands), factor in zip(plan(function.expression), factors, strict=True):
        values.append(OPERATORS[name].function(*[values[i] for i in operands]) * factor)
    return (values[-1] - function.shift) * function.output


@cache
def _normal_grid(reach: float, points: int) -> tuple[Tensor, Tensor]:
    """Return points on [-reach, reach] and their weights under N(0, 1), summing to 1.

    The trapezoidal rule, which kinks do not disturb as they do a Gauss-Hermite rule.
    """
    # Avoid the exact zero in the middle: reciprocal(x) has a pole there.
    x = torch.linspace(-reach, reach, points, device="cpu", dtype=torch.float64) + 1e-7
    weights = torch.exp(-0.5 * x**2)
    return x, weights / weights.sum()


def moments(expression: Expression) -> tuple[float, float]:
    """Return mean and variance of the output under x ~ N(0, 1), in float64.

    Not finite if the function is not. Infinite if the integral depends on the grid, that is, has
    not converged (poles, tails that grow faster than the normal density falls).
    """
    results = []
    for reach, points in ((10.0, 20_001), (9.0, 30_001)):
        x, weights = _normal_grid(reach, points)
        values = evaluate(expression, x)
        mean = (weights * values).sum()
        results.append((float(mean), float((weights * (values - mean) ** 2).sum())))
    (mean_a, variance_a), (_, variance_b) = results
    if abs(variance_a - variance_b) > 1e-2 * max(variance_a, variance_b) + 1e-12:
        return mean_a, float("inf")
    return mean_a, variance_a
