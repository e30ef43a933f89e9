"""Every operator and its slopes in nothing but exp, log, sqrt and arithmetic, accurate in float32.

For frameworks that have little more (Triton), or that lack some (ONNX, Keras). Formulas do not
overflow where the function itself does not, and keep relative accuracy near zero, because what
follows may divide by them.
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


def _normal(x: Term, factor: float) -> Term:
    return factor * exp(-x * x)


def _mish_slope(x: Term, _: Term) -> Term:
    t = tanh(softplus(x))
    return t + x * (1.0 - t * t) * sigmoid(x)


def _elish_slope(x: Term, _: Term) -> Term:
    s = sigmoid(x)
    e = expm1(minimum(x, 0.0))
    return s * where(x < 0.0, e + 1.0 + e * (1.0 - s), 1.0 + x * (1.0 - s))


def _gelu_slope(x: Term, _: Term) -> Term:
    density = math.sqrt(0.5 / math.pi) * exp(-0.5 * x * x)
    return 0.5 * erfc(-math.sqrt(0.5) * x) + x * density


def _arcsinh_slope(x: Term, _: Term) -> Term:
    near = minimum(abs(x), 1e9)
    return where(abs(x) > 1e9, 1.0 / abs(x), 1.0 / sqrt(1.0 + near * near))


SLOPES: dict[str, Callable[[Term, Term], Term]] = {
    "identity": lambda x, _: constant(x, 1.0),
    "negative": lambda x, _: constant(x, -1.0),
    "abs": lambda x, _: where(x > 0.0, 1.0, where(x < 0.0, -1.0, 0.0)),
    "reciprocal": lambda _, value: -value * value,
    "square": lambda x, _: 2.0 * x,
    "exp": lambda _, value: value,
    "erf": lambda x, _: _normal(x, 2 / math.sqrt(math.pi)),
    "erfc": lambda x, _: _normal(x, -2 / math.sqrt(math.pi)),
    "sinh": lambda x, _: cosh(x),
    "cosh": lambda x, _: sinh(x),
    "tanh": lambda _, value: 1.0 - value * value,
    "expm1": lambda x, _: exp(x),
    "sigmoid": lambda x, value: value * sigmoid(-x),
    "log_sigmoid": lambda x, _: sigmoid(-x),
    "arcsinh": _arcsinh_slope,
    "arctan": lambda x, _: 1.0 / (1.0 + x * x),
    "bessel_i0e": lambda x, value: i1e(x) - signed(x, value),
    "bessel_i1e": lambda x, value: i0e(x) - _i1e_by_x(x) - signed(x, value),
    "relu": lambda x, _: where(x > 0.0, 1.0, 0.0),
    "elu": lambda x, _: exp(minimum(x, 0.0)),
    "selu": lambda x, _: where(
        x > 0.0, _SELU_SCALE, (_SELU_SCALE * _SELU_ALPHA) * exp(minimum(x, 0.0))
    ),
    "swish": lambda x, value: sigmoid(x) + value * sigmoid(-x),
    "softplus": lambda x, _: sigmoid(x),
    "softsign": lambda x, _: 1.0 / ((1.0 + abs(x)) * (1.0 + abs(x))),
    "hard_sigmoid": lambda x, _: where(abs(x) > 2.5, 0.0, 0.2),
    "elish": _elish_slope,
    "leakyrelu": lambda x, _: where(x > 0.0, 1.0, 0.01),
    "mish": _mish_slope,
    "gelu": _gelu_slope,
}
"""Unary operator → what writes its slope at x, given its value; constants have none."""


def slope(name: str, pairs: Sequence[tuple[Term, Term | None]], value: Term) -> Term | None:
    """Write the slope of an operator's value along x.

    Args:
        name: of an operator.
        pairs: operands with their slopes along x; None where that is zero everywhere.
        value: of the operator.

    Returns:
        The slope; None where it is zero everywhere.
    """
    if all(tangent is None for _, tangent in pairs) or name in ("zero", "one"):
        return None
    if len(pairs) == 1:
        ((x, tangent),) = pairs
        if tangent is None:
            return None
        return SLOPES[name](x, value) * tangent
    if len(pairs) > 2 or name.endswith("_n"):
        return _fold_slope(name.removesuffix("_n"), pairs)
    first, second = pairs
    return _binary_slope(name, first, second, value)


def _fold_slope(name: str, pairs: Sequence[tuple[Term, Term | None]]) -> Term | None:
    binary = {"sum": "add", "prod": "mul"}.get(name, name)
    value, tangent = pairs[0]
    for pair in pairs[1:]:
        folded = VALUES[binary](value, pair[0])
        tangent = _binary_slope(binary, (value, tangent), pair, folded)
        value = folded
    return tangent


def _total(*parts: Term | None) -> Term | None:
    found = [part for part in parts if part is not None]
    return functools.reduce(lambda a, b: a + b, found) if found else None


def _binary_slope(
    name: str, first: tuple[Term, Term | None], second: tuple[Term, Term | None], value: Term
) -> Term | None:
    (a, da), (b, db) = first, second
    if name in ("add", "sub"):
        return _total(da, db if db is None or name == "add" else -db)
    if name == "mul":
        return _total(None if da is None else da * b, None if db is None else a * db)
    if name == "div":
        return _total(None if da is None else da / b, None if db is None else -db * value / b)
    if name == "pow":
        # log(a) where a > 0; at a = 0 the value does not depend on b > 0.
        # The slope along an operand that does not change is left out: it may be infinite.
        by_a = None
        if da is not None:
            along_a = where(b.equals(0.0), 0.0, b * power(a, b - 1.0))
            by_a = where(da.equals(0.0), 0.0, along_a * da)
        if db is None:
            return by_a
        logarithm = where(a < 0.0, float("nan"), log(maximum(a, 1e-38)))
        flat = where(a.equals(0.0), 1.0, 0.0) * where(b < 0.0, 0.0, 1.0)
        by_b = where(flat > 0.0, 0.0, value * logarithm)
        return _total(by_a, where(db.equals(0.0), 0.0, by_b * db))
    if da is None and db is None:
        return None
    # At a tie each of the two has half, as in torch.
    sign = 1.0 if name == "max" else -1.0
    ahead = sign * (a - b)
    share = where(a.equals(b), 0.5, where(ahead > 0.0, 1.0, 0.0))
    return _total(None if da is None else share * da, None if db is None else (1.0 - share) * db)
