"""Smoothness by other means: one-sided differences in 80 digits where operators have a break."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import torch
from mpmath import mp, mpf
from operator_truth import BINARY_TRUTH, NARY_TRUTH, UNARY_TRUTH

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression
from bo_act.specs import DomainSpec

TRUTH = UNARY_TRUTH | BINARY_TRUTH | NARY_TRUTH
STEP = mpf(10) ** -12

_AT_ZERO = ("relu", "abs", "elu", "selu", "softsign", "elish", "leakyrelu", "reciprocal", "pow")
_SCALED = ("bessel_i0e", "bessel_i1e")


def value(node: Expression, x: mpf) -> mpf:
    if not node.arguments:
        return x
    return TRUTH[node.name](*(value(argument, x) for argument in node.arguments))


def finite_at_zero(function: Expression) -> bool:
    with mpmath.workdps(80):
        return bool(mp.isfinite(value(function, mpf(0))))


def differentiable_at(function: Expression, place: mpf, order: int) -> bool:
    """Whether all derivatives up to the order are the same from both sides, however near."""
    with mpmath.workdps(80):
        one, nearer = (one_sided(function, place, step) for step in (STEP, STEP / 10**6))
        for some in (one[:order], nearer[:order]):
            if not all(mp.isfinite(side) for sides in some for side in sides):
                return False
        return all(
            abs(a - b) < mpf(10) ** -6 * (1 + abs(a))
            for sides, others in zip(one[:order], nearer[:order], strict=True)
            for a, b in [(sides[0], sides[1]), (sides[0], others[0]), (sides[1], others[1])]
        )


def one_sided(function: Expression, place: mpf, step: mpf = STEP) -> list[tuple[mpf, mpf]]:
    """Return first and second derivative, each after and before a place."""
    with mpmath.workdps(80):
        before2, before, here, after, after2 = (
            value(function, place + k * step) for k in range(-2, 3)
        )
        return [
            ((after - here) / step, (here - before) / step),
            ((after2 - 2 * after + here) / step**2, (here - 2 * before + before2) / step**2),
        ]


def differentiable_at_zero(function: Expression) -> bool:
    return differentiable_at(function, mpf(0), 1)


def twice_differentiable(function: Expression, domain: DomainSpec) -> bool:
    x = torch.linspace(domain.low, domain.high, 997, dtype=torch.float64)
    if not bool(torch.isfinite(evaluate(function, x)).all()):
        return False
    places = {mpf(0)}
    with mpmath.workdps(80):
        for node in set(function.nodes()):
            for difference, grid in _breaks(node, x):
                signs = torch.sign(grid)
                places.update(mpf(float(x[i])) for i in np.flatnonzero((signs == 0).numpy())[:5])
                for i in np.flatnonzero((signs[1:] * signs[:-1] < 0).numpy()):
                    places.add(_root(difference, mpf(float(x[i])), mpf(float(x[i + 1]))))
        return all(differentiable_at(function, place, 2) for place in places)


def _breaks(node: Expression, x: torch.Tensor):
    """Yield functions of x, in mpmath and on the grid, at whose roots a node may break."""
    some = node.arguments
    offsets: list[tuple[Callable[[mpf], mpf], torch.Tensor]] = []
    if node.name in (*_AT_ZERO, *_SCALED):
        offsets.append((lambda p: value(some[0], p), evaluate(some[0], x)))
    elif node.name == "hard_sigmoid":
        for edge in (mpf("2.5"), mpf("-2.5")):
            offsets.append(
                (lambda p, edge=edge: value(some[0], p) - edge, evaluate(some[0], x) - float(edge))
            )
    elif node.name == "div":
        offsets.append((lambda p: value(some[1], p), evaluate(some[1], x)))
    elif node.name in ("max", "min", "max_n", "min_n"):
        for place, one in enumerate(some):
            for other in some[place + 1 :]:
                offsets.append(
                    (
                        lambda p, one=one, other=other: value(one, p) - value(other, p),
                        evaluate(one, x) - evaluate(other, x),
                    )
                )
    return [(function, grid.expand_as(x)) for function, grid in offsets]


def _root(function: Callable[[mpf], mpf], low: mpf, high: mpf) -> mpf:
    rising = function(low) < 0
    for _ in range(240):
        middle = (low + high) / 2
        if (function(middle) < 0) == rising:
            low = middle
        else:
            high = middle
    return (low + high) / 2
