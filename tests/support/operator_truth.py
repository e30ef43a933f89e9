"""What every operator is, by its definition, in mpmath's arithmetic."""

from __future__ import annotations

from mpmath import mp, mpf

DIGITS = 50
SELU_SCALE = mpf("1.0507009873554804934193349852946")
SELU_ALPHA = mpf("1.6732632423543772848170429916717")


def sigmoid(x):
    return 1 / (1 + mp.exp(-x))


def softplus(x):
    return mp.log1p(mp.exp(x))


UNARY_TRUTH = {
    "zero": lambda x: mpf(0),
    "one": lambda x: mpf(1),
    "identity": lambda x: x,
    "negative": lambda x: -x,
    "abs": abs,
    "reciprocal": lambda x: 1 / x if x else mpf("inf"),
    "square": lambda x: x * x,
    "exp": mp.exp,
    "erf": mp.erf,
    "erfc": mp.erfc,
    "sinh": lambda x: (mp.exp(x) - mp.exp(-x)) / 2,
    "cosh": lambda x: (mp.exp(x) + mp.exp(-x)) / 2,
    "tanh": lambda x: 1 - 2 / (mp.exp(2 * x) + 1),
    "expm1": lambda x: mp.exp(x) - 1,
    "sigmoid": sigmoid,
    "log_sigmoid": lambda x: -mp.log1p(mp.exp(-x)),
    "arcsinh": lambda x: mp.sign(x) * mp.log(abs(x) + mp.sqrt(x * x + 1)),
    "arctan": mp.atan,
    "bessel_i0e": lambda x: mp.exp(-abs(x)) * mp.besseli(0, x),
    "bessel_i1e": lambda x: mp.exp(-abs(x)) * mp.besseli(1, x),
    "relu": lambda x: max(x, mpf(0)),
    "elu": lambda x: x if x > 0 else mp.exp(x) - 1,
    "selu": lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * (mp.exp(x) - 1)),
    "swish": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + abs(x)),
    "hard_sigmoid": lambda x: min(max(x / 5 + mpf("0.5"), mpf(0)), mpf(1)),
    "elish": lambda x: sigmoid(x) * (x if x >= 0 else mp.exp(x) - 1),
    "leakyrelu": lambda x: x if x > 0 else x / 100,
    "mish": lambda x: x * mp.tanh(softplus(x)),
    "gelu": lambda x: x * (1 + mp.erf(x / mp.sqrt(2))) / 2,
}


def power(a, b):
    if a < 0 and b != mp.floor(b):
        return mp.nan
    if a == 0 and b < 0:
        return mp.inf
    return mpf(1) if b == 0 else mp.power(a, b)


BINARY_TRUTH = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b if b else (mp.sign(a) * mp.inf if a else mp.nan),
    "pow": power,
    "max": max,
    "min": min,
}
NARY_TRUTH = {
    "sum_n": lambda *some: mp.fsum(some),
    "prod_n": lambda *some: mp.fprod(some),
    "max_n": max,
    "min_n": min,
}
