"""Expressions as MathML, which browsers typeset without any script.

An operator's notation has a precedence; an operand that binds less tightly than its place asks is
put in parentheses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bo_act.activations.expressions import Expression
from bo_act.html import Markup

# How tightly a notation binds: sums, products, fractions, functions of an argument, single symbols.
_SUM, _PRODUCT, _FRACTION, _CALL, _SYMBOL = range(5)

_Shown = tuple[str, int]

# Functions whose usual name differs from the operator's.
_NAMES = {"sigmoid": "&#x3C3;", "relu": "ReLU", "elu": "ELU", "selu": "SELU", "gelu": "GELU"}
_NAMES |= {"leakyrelu": "LeakyReLU", "elish": "ELiSH", "hard_sigmoid": "hard&#x3C3;"}


def mathml(expression: Expression) -> Markup:
    """Return the formula of an expression as one ``<math>`` element."""
    return Markup(
        f'<math xmlns="http://www.w3.org/1998/Math/MathML">{_shown(expression)[0]}</math>'
    )


def _shown(expression: Expression) -> _Shown:
    if not expression.arguments:
        return "<mi>x</mi>", _SYMBOL
    operands = [_shown(argument) for argument in expression.arguments]
    name = expression.name
    if name in _NOTATION:
        return _NOTATION[name](operands)
    if name in _BETWEEN:
        return _between(name, operands)
    return _call(name, operands)


def _within(shown: _Shown, least: int) -> str:
    inner, precedence = shown
    return inner if precedence >= least else _parentheses(inner)


def _parentheses(inner: str) -> str:
    return f"<mrow><mo>(</mo>{inner}<mo>)</mo></mrow>"


def _row(*parts: str) -> str:
    return f"<mrow>{''.join(parts)}</mrow>"


def _call(name: str, operands: Sequence[_Shown]) -> _Shown:
    shown = f'<mi mathvariant="normal">{_NAMES.get(name, name.replace("_n", ""))}</mi>'
    return _applied(shown, operands)


def _applied(function: str, operands: Sequence[_Shown]) -> _Shown:
    inner = "<mo>,</mo>".join(inner for inner, _ in operands)
    return _row(function, "<mo>&#x2061;</mo>", _parentheses(inner)), _CALL


def _power(base: str, exponent: str) -> str:
    return f"<msup>{base}<mrow>{exponent}</mrow></msup>"


def _fraction(above: str, below: str) -> _Shown:
    return f"<mfrac><mrow>{above}</mrow><mrow>{below}</mrow></mfrac>", _FRACTION


def _bessel(order: int) -> Callable[[Sequence[_Shown]], _Shown]:
    def shown(operands: Sequence[_Shown]) -> _Shown:
        # Exponentially scaled: e^-|x| I(x), written as one function.
        name = f"<msubsup><mi>I</mi><mn>{order}</mn><mi>e</mi></msubsup>"
        return _applied(name, operands)

    return shown


_E = "<mi>e</mi>"
_NOTATION: dict[str, Callable[[Sequence[_Shown]], _Shown]] = {
    "zero": lambda _: ("<mn>0</mn>", _SYMBOL),
    "one": lambda _: ("<mn>1</mn>", _SYMBOL),
    "identity": lambda a: a[0],
    "negative": lambda a: (_row("<mo>&#x2212;</mo>", _within(a[0], _PRODUCT)), _SUM),
    "abs": lambda a: (_row("<mo>|</mo>", a[0][0], "<mo>|</mo>"), _SYMBOL),
    "reciprocal": lambda a: _fraction("<mn>1</mn>", a[0][0]),
    "square": lambda a: (_power(_within(a[0], _SYMBOL), "<mn>2</mn>"), _CALL),
    "exp": lambda a: (_power(_E, a[0][0]), _CALL),
    "expm1": lambda a: (_row(_power(_E, a[0][0]), "<mo>&#x2212;</mo><mn>1</mn>"), _SUM),
    "log_sigmoid": lambda a: (
        _row("<mi>log</mi><mo>&#x2061;</mo>", _call("sigmoid", a)[0]),
        _PRODUCT,
    ),
    "bessel_i0e": _bessel(0),
    "bessel_i1e": _bessel(1),
    "div": lambda a: _fraction(a[0][0], a[1][0]),
    "pow": lambda a: (_power(_within(a[0], _SYMBOL), a[1][0]), _CALL),
}

_BETWEEN = {
    "add": ("+", _SUM),
    "sum_n": ("+", _SUM),
    "sub": ("&#x2212;", _SUM),
    "mul": ("&#x22C5;", _PRODUCT),
    "prod_n": ("&#x22C5;", _PRODUCT),
}


def _between(name: str, operands: Sequence[_Shown]) -> _Shown:
    sign, precedence = _BETWEEN[name]
    first, *others = operands
    # What follows a minus binds tighter, and so does whatever begins with one.
    after = precedence + 1 if name == "sub" else precedence
    parts = [_within(first, precedence)]
    for operand in others:
        negative = operand[0].startswith("<mrow><mo>&#x2212;</mo>")
        inner = _parentheses(operand[0]) if negative else _within(operand, after)
        parts += [f"<mo>{sign}</mo>", inner]
    return _row(*parts), precedence
