"""Operators in nothing but exp, log, sqrt and arithmetic, accurate in float32.

For what a framework lacks (ONNX, Keras). Formulas do not overflow where the function itself does
not, and keep relative accuracy near zero, because what follows may divide by them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from bo_act.exports import coefficients
from bo_act.exports.terms import Term, exp, floor, log, maximum, minimum, sqrt, where

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


def sinh(x: Term) -> Term:
    """By halves of e^(|x| / 2), which overflow as late as sinh itself."""
    e = expm1(minimum(abs(x), 1.0))
    half = exp(0.5 * abs(x))
    far = 0.5 * half * half - 0.5 / half / half
    return signed(x, where(abs(x) < 1.0, 0.5 * (e + e / (e + 1.0)), far))


def cosh(x: Term) -> Term:
    """By halves of e^(|x| / 2)."""
    half = exp(0.5 * abs(x))
    return 0.5 * half * half + 0.5 / half / half


def arcsinh(x: Term) -> Term:
    """log(|x| + sqrt(x^2 + 1)), by log1p; beyond 1e9, where x^2 could overflow, log(2 |x|)."""
    z = abs(x)
    near = minimum(z, 1e9)
    square = near * near
    return signed(
        x, where(z > 1e9, log(z) + math.log(2.0), log1p(near + square / (1.0 + sqrt(1.0 + square))))
    )


def arctan(x: Term) -> Term:
    """By a polynomial up to 1; beyond it by the value at 1 / |x|, taken from pi / 2."""
    z = abs(x)
    far = z > 1.0
    u = where(far, 1.0 / maximum(z, 1.0), z)
    value = u * polynomial(coefficients.ARCTAN, 2.0 * u * u - 1.0)
    return signed(x, where(far, math.pi / 2 - value, value))


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
    """e^-|x| I1(x)."""
    return x * _i1e_by_x(x)


def power(a: Term, b: Term) -> Term:
    """a^b as IEEE 754 has it, but for infinite operands."""
    zero, whole = a.equals(0.0), floor(b).equals(b)
    odd = where((floor(0.5 * b) * 2.0).equals(b), 1.0, -1.0)
    size = exp(b * log(where(zero, 1.0, abs(a))))
    negative = where(whole, odd * size, float("nan"))
    at_zero = where(b > 0.0, 0.0, where(b.equals(0.0), 1.0, float("inf")))
    value = where(zero, at_zero, where(a < 0.0, negative, size))
    return where(b.equals(0.0), 1.0, where(a.equals(1.0), 1.0, value))


def gelu(x: Term) -> Term:
    """By erfc, which keeps the left tail."""
    return 0.5 * x * erfc(-math.sqrt(0.5) * x)


def _gate(x: Term) -> Term:
    return maximum(minimum(0.2 * x + 0.5, 1.0), 0.0)


def _folded(function: Callable[[Term, Term], Term]) -> Callable[..., Term]:
    return lambda *terms: functools.reduce(function, terms)


def constant(x: Term, value: float) -> Term:
    """A constant of x's shape, whatever x is."""
    return where(x.equals(x), value, value)


VALUES: dict[str, Callable[..., Term]] = {
    "zero": lambda x: constant(x, 0.0),
    "one": lambda x: constant(x, 1.0),
    "identity": lambda x: x,
    "negative": lambda x: -x,
    "abs": abs,
    "reciprocal": lambda x: 1.0 / x,
    "square": lambda x: x * x,
    "exp": exp,
    "erf": erf,
    "erfc": erfc,
    "sinh": sinh,
    "cosh": cosh,
    "tanh": tanh,
    "expm1": expm1,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -softplus(-x),
    "arcsinh": arcsinh,
    "arctan": arctan,
    "bessel_i0e": i0e,
    "bessel_i1e": i1e,
    "relu": lambda x: maximum(x, 0.0),
    "elu": lambda x: where(x > 0.0, x, expm1(minimum(x, 0.0))),
    "selu": lambda x: where(
        x > 0.0, _SELU_SCALE * x, (_SELU_SCALE * _SELU_ALPHA) * expm1(minimum(x, 0.0))
    ),
    "swish": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "softsign": lambda x: x / (1.0 + abs(x)),
    "hard_sigmoid": _gate,
    "elish": lambda x: where(x < 0.0, expm1(minimum(x, 0.0)), x) * sigmoid(x),
    "leakyrelu": lambda x: where(x > 0.0, x, 0.01 * x),
    "mish": lambda x: x * tanh(softplus(x)),
    "gelu": gelu,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": power,
    "max": maximum,
    "min": minimum,
    "sum_n": _folded(lambda a, b: a + b),
    "prod_n": _folded(lambda a, b: a * b),
    "max_n": _folded(maximum),
    "min_n": _folded(minimum),
}
"""Operator → what writes its value."""
