"""The operator table: 31 unary, 7 binary and 4 n-ary operators.

The set and the names are those of Bingham and Miikkulainen (2023), arXiv 2301.05785, with the
four unary operators that their released code added later. Every function maps tensors of one
shape and floating dtype to a tensor of that shape and dtype. Formulas are written so that neither
value nor gradient overflows where the function itself does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["unary", "binary", "nary"]


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the table.

    Attributes:
        name: in expressions.
        kind: how many arguments it takes: one, two, or two and more.
        function: from tensors to a tensor of the same shape.
        formula: for people.
        commutative: whether the order of the arguments does not matter.
        keeps_output: whether torch saves the output for the backward pass, so that it must not
            change in between.
    """

    name: str
    kind: Kind
    function: Callable[..., Tensor]
    formula: str
    commutative: bool = False
    keeps_output: bool = False

    def accepts(self, count: int) -> bool:
        """Tell whether the operator takes that many arguments."""
        return {"unary": count == 1, "binary": count == 2, "nary": count >= 2}[self.kind]

    @property
    def arity(self) -> str:
        """How many arguments it takes, in words."""
        return {"unary": "1 argument", "binary": "2 arguments", "nary": "2 or more arguments"}[
            self.kind
        ]


# expm1 of the negative part only: in the discarded branch of `where` it would overflow and poison
# the gradient with inf · 0.
def _elish(x: Tensor) -> Tensor:
    negative = torch.expm1(torch.clamp(x, max=0.0))
    return torch.where(x >= 0, x, negative) * torch.sigmoid(x)


def _softplus(x: Tensor) -> Tensor:
    # torch's softplus switches to the identity above 20, which is 2e-9 off in float64. Where it
    # underflows it is 0.0, not -0.0: 1 / softplus(x) is positive.
    return 0.0 - functional.logsigmoid(-x)


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


_UNARY: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("zero", torch.zeros_like, "0"),
    ("one", torch.ones_like, "1"),
    ("identity", lambda x: x, "x"),
    ("negative", torch.neg, "-x"),
    ("abs", torch.abs, "|x|"),
    ("reciprocal", torch.reciprocal, "1 / x"),
    ("square", torch.square, "x^2"),
    ("exp", torch.exp, "e^x"),
    ("erf", torch.erf, "erf(x)"),
    ("erfc", torch.erfc, "1 - erf(x)"),
    ("sinh", torch.sinh, "sinh(x)"),
    ("cosh", torch.cosh, "cosh(x)"),
    ("tanh", torch.tanh, "tanh(x)"),
    ("expm1", torch.expm1, "e^x - 1"),
    ("sigmoid", torch.sigmoid, "1 / (1 + e^-x)"),
    ("log_sigmoid", functional.logsigmoid, "log(1 / (1 + e^-x))"),
    ("arcsinh", torch.asinh, "arcsinh(x)"),
    ("arctan", torch.atan, "arctan(x)"),
    ("bessel_i0e", torch.special.i0e, "e^-|x| I0(x)"),
    ("bessel_i1e", torch.special.i1e, "e^-|x| I1(x)"),
    ("relu", functional.relu, "max(x, 0)"),
    ("elu", functional.elu, "x if x > 0 else e^x - 1"),
    ("selu", functional.selu, "1.0507 (x if x > 0 else 1.6733 (e^x - 1))"),
    ("swish", functional.silu, "x sigmoid(x)"),
    ("softplus", _softplus, "log(1 + e^x)"),
    ("softsign", lambda x: x / (1 + torch.abs(x)), "x / (1 + |x|)"),
    ("hard_sigmoid", lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0), "clip(0.2 x + 0.5, 0, 1)"),
    ("elish", _elish, "sigmoid(x) (x if x >= 0 else e^x - 1)"),
    ("leakyrelu", lambda x: functional.leaky_relu(x, 0.01), "x if x > 0 else 0.01 x"),
    ("mish", _mish, "x tanh(log(1 + e^x))"),
    ("gelu", functional.gelu, "x (1 + erf(x / sqrt(2))) / 2"),
]

_BINARY: list[tuple[str, Callable[[Tensor, Tensor], Tensor], str, bool]] = [
    ("add", torch.add, "a + b", True),
    ("sub", torch.sub, "a - b", False),
    ("mul", torch.mul, "a b", True),
    ("div", torch.div, "a / b", False),
    ("pow", torch.pow, "a^b", False),
    ("max", torch.maximum, "max(a, b)", True),
    ("min", torch.minimum, "min(a, b)", True),
]


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def fold(*arguments: Tensor) -> Tensor:
        return functools.reduce(function, arguments)

    return fold


_NARY: list[tuple[str, Callable[..., Tensor], str]] = [
    ("sum_n", _folded(torch.add), "a + b + ..."),
    ("prod_n", _folded(torch.mul), "a b ..."),
    ("max_n", _folded(torch.maximum), "max(a, b, ...)"),
    ("min_n", _folded(torch.minimum), "min(a, b, ...)"),
]

_KEEP_OUTPUT = {
    "reciprocal", "exp", "tanh", "expm1", "sigmoid", "bessel_i0e", "bessel_i1e", "relu", "pow",
}  # fmt: skip

OPERATORS: dict[str, Operator] = {
    operator.name: replace(operator, keeps_output=operator.name in _KEEP_OUTPUT)
    for operator in (
        *(Operator(name, "unary", function, formula) for name, function, formula in _UNARY),
        *(Operator(name, "binary", function, formula, c) for name, function, formula, c in _BINARY),
        *(Operator(name, "nary", function, formula, True) for name, function, formula in _NARY),
    )
}
"""All operators by name."""


def of_kind(kind: Kind) -> tuple[str, ...]:
    """Return the names of all operators of a kind, in the table's order."""
    return tuple(operator.name for operator in OPERATORS.values() if operator.kind == kind)
