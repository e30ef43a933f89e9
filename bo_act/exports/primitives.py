"""Operators in nothing but exp, log, sqrt and arithmetic, accurate in float32.

For what a framework lacks (ONNX, Keras). Formulas do not overflow where the function itself does
not, and keep relative accuracy near zero, because what follows may divide by them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bo_act.exports import coefficients
from bo_act.exports.terms import Term, exp, log, maximum, minimum, sqrt, where

_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772


def polynomial(powers: Sequence[float], t: Term) -> Term:
    """Write a polynomial by Horner's rule; constant first."""
    value = t.writer.term(powers[-1])
    for power in reversed(powers[:-1]):
        value = value * t + power
    return value


def expm1(x: Term) -> Term:
    """e^x - 1: its series below 1/2, where the subtraction would lose digits."""
    small = maximum(minimum(x, 0.5), -0.5)
    series = polynomial([1 / math.factorial(k + 1) for k in range(9)], small)
    return where(abs(x) < 0.5, small * series, exp(x) - 1.0)


def log1p(u: Term) -> Term:
    """log(1 + u) for u >= 0: the rounding of 1 + u is divided out (W. Kahan)."""
    w = 1.0 + u
    exact = w.equals(1.0)
    return where(exact, u, log(w) * (u / where(exact, 1.0, w - 1.0)))


def sigmoid(x: Term) -> Term:
    """1 / (1 + e^-x), both tails without overflow."""
    e = exp(-abs(x))
    return where(x < 0.0, e, 1.0 + 0.0 * e) / (1.0 + e)


def tanh(x: Term) -> Term:
    """By expm1 of -2|x|."""
    e = expm1(-2.0 * abs(x))
    return signed(x, -e / (2.0 + e))


def signed(x: Term, value: Term) -> Term:
    """Give a value x's sign."""
    return where(x < 0.0, -value, value)


def softplus(x: Term) -> Term:
    """log(1 + e^x)."""
    return maximum(x, 0.0) + log1p(exp(-abs(x)))


def arcsinh(x: Term) -> Term:
    """log(|x| + sqrt(x^2 + 1)), by log1p; beyond 1e9, where x^2 could overflow, log(2 |x|)."""
    z = abs(x)
    near = minimum(z, 1e9)
    square = near * near
    return signed(
        x, where(z > 1e9, log(z) + math.log(2.0), log1p(near + square / (1.0 + sqrt(1.0 + square))))
    )


def erfc(x: Term) -> Term:
    """1 - erf(x), with relative accuracy in the right tail."""
    z = abs(x)
    inside = minimum(z, 20.0)
    t = (2.0 - inside) / (2.0 + inside)
    tail = exp(-inside * inside) * polynomial(coefficients.ERFC, t) / (1.0 + inside)
    return where(x < 0.0, 2.0 - tail, tail)


def erf(x: Term) -> Term:
    """The series near zero, 1 - erfc beyond."""
    small = maximum(minimum(x, 0.5), -0.5)
    series = [(-1) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(8)]
    near = (2 / math.sqrt(math.pi)) * small * polynomial(series, small * small)
    return where(abs(x) < 0.5, near, 1.0 - erfc(x))


def i0e(x: Term) -> Term:
    """e^-|x| I0(x)."""
    z = abs(x)
    return polynomial(coefficients.I0E, 8.0 / (4.0 + z) - 1.0) / sqrt(1.0 + z)


def _i1e_by_x(x: Term) -> Term:
    z = abs(x)
    return polynomial(coefficients.I1E, 8.0 / (4.0 + z) - 1.0) / ((1.0 + z) * sqrt(1.0 + z))


def i1e(x: Term) -> Term:
    """e^-|x| I1(x); a zero of x's sign where powers of x overflow."""
    far = abs(x) > 1e30
    near = where(far, 0.0, x)
    return where(far, where(x < 0.0, -0.0, 0.0), near * _i1e_by_x(near))


def gelu(x: Term) -> Term:
    """By erfc, which keeps the left tail."""
    return 0.5 * x * erfc(-math.sqrt(0.5) * x)


def constant(x: Term, value: float) -> Term:
    """A constant of x's shape, whatever x is."""
    return where(x.equals(x), value, value)


VALUES: dict[str, Callable[..., Term]] = {
    "zero": lambda x: constant(x, 0.0),
    "one": lambda x: constant(x, 1.0),
    "square": lambda x: x * x,
    "erf": erf,
    "erfc": erfc,
    "tanh": tanh,
    "expm1": expm1,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -softplus(-x),
    "arcsinh": arcsinh,
    "bessel_i0e": i0e,
    "bessel_i1e": i1e,
    "elu": lambda x: where(x > 0.0, x, expm1(minimum(x, 0.0))),
    "selu": lambda x: where(
        x > 0.0, _SELU_SCALE * x, (_SELU_SCALE * _SELU_ALPHA) * expm1(minimum(x, 0.0))
    ),
    "swish": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "softsign": lambda x: x / (1.0 + abs(x)),
    "elish": lambda x: where(x < 0.0, expm1(minimum(x, 0.0)), x) * sigmoid(x),
    "mish": lambda x: x * tanh(softplus(x)),
    "gelu": gelu,
}
"""Operator that some framework lacks → what writes its value."""
