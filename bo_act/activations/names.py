"""Names of the operators in other libraries, and their functions that are not operators here.

``silu``, ``SiLU`` and ``nn.SiLU`` are ``swish``, which is also what bo-act stores and shows. Where
libraries differ, PyTorch's meaning counts.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

from bo_act.activations.operators import OPERATORS

_LIBRARY = re.compile(
    r"(?:torch\.)?(?:nn\.functional|nn|functional|F|special)\.|(?:torch|np|numpy|math)\."
)

ALIASES = {
    "silu": "swish",
    "logistic": "sigmoid",
    "expit": "sigmoid",
    "celu": "elu",
    "exponential": "exp",
    "asinh": "arcsinh",
    "atan": "arctan",
    "neg": "negative",
    "absolute": "abs",
    "fabs": "abs",
    "i0e": "bessel_i0e",
    "i1e": "bessel_i1e",
    "zeroslike": "zero",
    "oneslike": "one",
    "subtract": "sub",
    "multiply": "mul",
    "times": "mul",
    "plus": "add",
    "divide": "div",
    "truedivide": "div",
    "power": "pow",
    "maximum": "max",
    "minimum": "min",
}
"""Names, without capitals and underscores → the operator that is the same function."""

_ANOTHER = (
    "acos acosh arccos arccosh arcsin arctanh asin atanh besselj0 besselj1 cbrt ceil clamp clip "
    "cos cube digamma dropout erfcx erfinv exp2 floor fmod gamma geglu hardshrink heaviside "
    "hypot lgamma log log10 log1p log2 logaddexp logit maxout mean norm remainder round rsqrt "
    "sign sgn sin sinc softshrink sqrt swiglu tan threshold trunc"
)

_OTHERS = {
    "hardsigmoid": "clip(x / 6 + 1/2, 0, 1); hard_sigmoid here is clip(0.2 x + 0.5, 0, 1)",
    "hardswish": "x clip(x / 6 + 1/2, 0, 1); swish(x) is x sigmoid(x)",
    "hardsilu": "x clip(x / 6 + 1/2, 0, 1); swish(x) is x sigmoid(x)",
    "hardtanh": "clip(x, -1, 1)",
    "relu6": "clip(x, 0, 6)",
    "quickgelu": "x sigmoid(1.702 x); gelu(x) is the exact one",
    "gelutanh": "an approximation; gelu(x) is the exact one",
    "gelunew": "an approximation; gelu(x) is the exact one",
    "gelufast": "an approximation; gelu(x) is the exact one",
    "tanhshrink": "x - tanh(x); write sub(x,tanh(x))",
    "lisht": "x tanh(x); write mul(x,tanh(x))",
    "serf": "x erf(log(1 + e^x)); write mul(x,erf(softplus(x)))",
    "tanhexp": "x tanh(e^x); write mul(x,tanh(exp(x)))",
    "phish": "x tanh(gelu(x)); write mul(x,tanh(gelu(x)))",
    "relusquared": "max(x, 0)^2; write square(relu(x))",
    "squaredrelu": "max(x, 0)^2; write square(relu(x))",
    "i0": "I0(x); bessel_i0e is e^-|x| I0(x)",
    "i1": "I1(x); bessel_i1e is e^-|x| I1(x)",
    "besseli0": "I0(x); bessel_i0e is e^-|x| I0(x)",
    "besseli1": "I1(x); bessel_i1e is e^-|x| I1(x)",
    "fmax": "a maximum that ignores NaN; max propagates it",
    "fmin": "a minimum that ignores NaN; min propagates it",
    "arctan2": "of two arguments; arctan has one",
    "atan2": "of two arguments; arctan has one",
    "sum": "a sum of all elements; add has two arguments, sum_n more",
    "prod": "a product of all elements; mul has two arguments, prod_n more",
    "prelu": "a function with weights",
    "rrelu": "random",
    "softmax": "not element by element",
    "logsoftmax": "not element by element",
    "softmin": "not element by element",
    "glu": "not element by element",
} | dict.fromkeys(
    _ANOTHER.split(),
    "a different function, not an operator here",
)
"""Functions that look like an operator to those who misspell one, and are none: what they are."""


def operator_named(name: str) -> str | None:
    """Return the operator of that name in any library, or None."""
    if name in OPERATORS:
        return name
    key = _key(name)
    return None if key in _OTHERS else ALIASES.get(key) or _OWN.get(key)


def own_names(text: str) -> str:
    """Return an expression or schema with the operators' own names."""
    return re.sub(r"[A-Za-z_][A-Za-z_0-9.]*", lambda m: operator_named(m[0]) or m[0], text)


def hint(name: str, known: Collection[str]) -> str:
    """Return a hint for an unknown name, or ``""``.

    Args:
        name: any.
        known: valid names.
    """
    key = _key(name)
    if key in _OTHERS:
        return f", which is {_OTHERS[key]}"
    if len(name) == 1:
        return "; the input is written x"
    meant = {other: other for other in known}
    meant |= {other: own for other, own in (ALIASES | _OWN).items() if own in known}
    match = get_close_matches(key, [*meant, *_OTHERS], n=1, cutoff=0.7)
    return f" (did you mean {meant[match[0]]!r}?)" if match and match[0] in meant else ""


def _key(name: str) -> str:
    return _LIBRARY.sub("", name, count=1).lower().replace("_", "")


_OWN = {_key(name): name for name in OPERATORS}
