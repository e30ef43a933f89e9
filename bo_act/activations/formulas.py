"""Formulas for people: plain text, LaTeX, and MathML, which browsers typeset without a script.

One walk over the tree writes all three. A style has templates for operators with their own
notation; other operators are written as functions. Brackets surround what binds too loosely for
its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from bo_act.activations.expressions import Expression
from bo_act.activations.scales import Scaled
from bo_act.html import Markup

# How tightly a formula binds.
_SUM, _PRODUCT, _POWER, _ATOM = range(4)
_LEVELS = {"": _SUM, "product": _PRODUCT, "power": _POWER, "atom": _ATOM}

_Notation = Mapping[str, tuple[int, str]]
"""Operator → how tightly it binds and a template: ``{0:product}`` is the first operand, in brackets
unless it binds at least as tightly as a product."""


@dataclass(frozen=True)
class _Style:
    """How one kind of text is written.

    Attributes:
        notation: of operators not written as functions.
        names: operator → the function's name; others have ``name`` of the operator's words.
        name: template of a function's name; ``space`` separates its words.
        call: template of a function's name and its operands in brackets, and how it binds.
        brackets: opening and closing.
        row: template around a sum or product; ``plus``, ``times`` and ``comma`` separate operands.
        number: template of a number; ``dot`` follows a factor.
        minus: start of a negative formula.
        brackets_first: whether brackets surround a negative first operand of a sum.
    """

    notation: _Notation
    names: Mapping[str, str]
    name: str
    space: str
    call: tuple[int, str]
    brackets: tuple[str, str]
    row: str
    plus: str
    times: str
    comma: str
    dot: str
    number: str
    minus: str
    brackets_first: bool

    def bracketed(self, text: str) -> str:
        return f"{self.brackets[0]}{text}{self.brackets[1]}"

    def function(self, name: str) -> str:
        return self.names.get(name) or self.name.format(name.replace("_", self.space))


@dataclass(frozen=True)
class _Part:
    text: str
    level: int
    style: _Style = field(repr=False)

    def __format__(self, level: str) -> str:
        """Write it for a place with a binding level."""
        return self.text if self.level >= _LEVELS[level] else self.style.bracketed(self.text)

    def as_term(self, *, is_first: bool) -> str:
        signed = self.text.startswith(self.style.minus)
        if signed and (self.style.brackets_first or not is_first):
            return self.style.bracketed(self.text)
        return self.text


def plain(function: Expression | Scaled) -> str:
    """Return a formula in plain text, with operators between their operands."""
    return _written(function, _PLAIN)


def latex(function: Expression | Scaled) -> str:
    r"""Return a formula in LaTeX, for a mathematical environment; ``\sigma`` is the sigmoid."""
    return _written(function, _LATEX)


def mathml(function: Expression | Scaled) -> Markup:
    """Return a formula as one ``<math>`` element."""
    inside = _written(function, _MATHML)
    return Markup(f'<math xmlns="http://www.w3.org/1998/Math/MathML">{inside}</math>')


def _written(function: Expression | Scaled, style: _Style) -> str:
    if isinstance(function, Expression):
        return _walk(function, style, {}).text
    part = _walk(function.expression, style, function.factors)
    if function.shift:
        shift = _number(function.shift, style)
        part = _Part(style.notation["sub"][1].format(part, shift), _SUM, style)
    return _times(function.output, part, style).text


def _number(value: float, style: _Style) -> _Part:
    return _Part(style.number.format(f"{value:.4g}"), _ATOM if value >= 0 else _SUM, style)


def _times(factor: float, part: _Part, style: _Style) -> _Part:
    if factor == 1.0:
        return part
    product = f"{_number(factor, style):product}{style.dot}{part:product}"
    return _Part(style.row.format(product), _PRODUCT, style)


def _walk(node: Expression, style: _Style, factors: Mapping[Expression, float]) -> _Part:
    return _times(factors.get(node, 1.0), _unscaled(node, style, factors), style)


def _unscaled(node: Expression, style: _Style, factors: Mapping[Expression, float]) -> _Part:
    if not node.arguments:
        return _Part(style.notation["x"][1], _ATOM, style)
    parts = [_walk(argument, style, factors) for argument in node.arguments]
    name = node.name.removesuffix("_n")
    if name == "identity":
        return parts[0]
    if name in style.notation:
        level, template = style.notation[name]
        return _Part(template.format(*parts), level, style)
    if name in ("add", "sum"):
        terms = [part.as_term(is_first=not position) for position, part in enumerate(parts)]
        return _Part(style.row.format(style.plus.join(terms)), _SUM, style)
    if name in ("mul", "prod"):
        product = style.times.join(f"{part:product}" for part in parts)
        return _Part(style.row.format(product), _PRODUCT, style)
    level, template = style.call
    inside = style.bracketed(style.comma.join(part.text for part in parts))
    return _Part(template.format(style.function(name), inside), level, style)


_IN_A_LINE: _Notation = {
    "x": (_ATOM, "x"),
    "zero": (_ATOM, "0"),
    "one": (_ATOM, "1"),
    "negative": (_SUM, "-{0:product}"),
    "sub": (_SUM, "{0} - {1:product}"),
}
_PLAIN = _Style(
    notation={
        **_IN_A_LINE,
        "abs": (_ATOM, "|{0}|"),
        "reciprocal": (_PRODUCT, "1 / {0:atom}"),
        "square": (_POWER, "{0:atom}^2"),
        "div": (_PRODUCT, "{0:product} / {1:power}"),
        "pow": (_POWER, "{0:atom}^{1:atom}"),
    },
    names={},
    name="{}",
    space="_",
    call=(_ATOM, "{}{}"),
    brackets=("(", ")"),
    row="{}",
    plus=" + ",
    times=" * ",
    comma=", ",
    dot=" * ",
    number="{}",
    minus="-",
    brackets_first=True,
)

_LATEX = _Style(
    notation={
        **_IN_A_LINE,
        "abs": (_ATOM, r"\left|{0}\right|"),
        "reciprocal": (_PRODUCT, r"\frac{{1}}{{{0}}}"),
        "square": (_POWER, "{0:atom}^{{2}}"),
        "exp": (_POWER, "e^{{{0}}}"),
        "expm1": (_SUM, "e^{{{0}}} - 1"),
        "log_sigmoid": (_PRODUCT, r"\log \sigma\left({0}\right)"),
        "bessel_i0e": (_PRODUCT, r"e^{{-\left|{0}\right|}} I_0\left({0}\right)"),
        "bessel_i1e": (_PRODUCT, r"e^{{-\left|{0}\right|}} I_1\left({0}\right)"),
        "relu": (_ATOM, r"\max\left({0}, 0\right)"),
        "softplus": (_PRODUCT, r"\log\left(1 + e^{{{0}}}\right)"),
        "div": (_PRODUCT, r"\frac{{{0}}}{{{1}}}"),
        "pow": (_POWER, "{0:atom}^{{{1}}}"),
    },
    names={
        "sigmoid": r"\sigma",
        "arcsinh": r"\operatorname{arsinh}",
        **{name: "\\" + name for name in ("sinh", "cosh", "tanh", "arctan", "max", "min")},
    },
    name=r"\operatorname{{{}}}",
    space=" ",
    call=(_ATOM, "{}{}"),
    brackets=(r"\left(", r"\right)"),
    row="{}",
    plus=" + ",
    times=r" \, ",
    comma=", ",
    dot=r" \cdot ",
    number="{}",
    minus="-",
    brackets_first=True,
)

_APPLY = "<mo>&#x2061;</mo>"
_MINUS = "<mo>&#x2212;</mo>"
_UPRIGHT = '<mi mathvariant="normal">{}</mi>'
_UPRIGHT_NAMES = {
    "sigmoid": "&#x3C3;",
    "hard_sigmoid": "hard&#x3C3;",
    "relu": "ReLU",
    "elu": "ELU",
    "selu": "SELU",
    "gelu": "GELU",
    "leakyrelu": "LeakyReLU",
    "elish": "ELiSH",
}
# Exponentially scaled: e^-|x| I(x), written as one function.
_BESSEL = "<msubsup><mi>I</mi><mn>{}</mn><mi>e</mi></msubsup>"

_MATHML = _Style(
    notation={
        "x": (_ATOM, "<mi>x</mi>"),
        "zero": (_ATOM, "<mn>0</mn>"),
        "one": (_ATOM, "<mn>1</mn>"),
        "negative": (_SUM, f"<mrow>{_MINUS}{{0:product}}</mrow>"),
        "abs": (_ATOM, "<mrow><mo>|</mo>{0}<mo>|</mo></mrow>"),
        "reciprocal": (_PRODUCT, "<mfrac><mrow><mn>1</mn></mrow><mrow>{0}</mrow></mfrac>"),
        "square": (_POWER, "<msup>{0:atom}<mrow><mn>2</mn></mrow></msup>"),
        "exp": (_POWER, "<msup><mi>e</mi><mrow>{0}</mrow></msup>"),
        "expm1": (
            _SUM,
            f"<mrow><msup><mi>e</mi><mrow>{{0}}</mrow></msup>{_MINUS}<mn>1</mn></mrow>",
        ),
        "log_sigmoid": (
            _PRODUCT,
            f"<mrow><mi>log</mi>{_APPLY}<mrow>{_UPRIGHT.format('&#x3C3;')}{_APPLY}"
            "<mrow><mo>(</mo>{0}<mo>)</mo></mrow></mrow></mrow>",
        ),
        "sub": (_SUM, f"<mrow>{{0}}{_MINUS}{{1:product}}</mrow>"),
        "div": (_PRODUCT, "<mfrac><mrow>{0}</mrow><mrow>{1}</mrow></mfrac>"),
        "pow": (_POWER, "<msup>{0:atom}<mrow>{1}</mrow></msup>"),
    },
    names={
        **{name: _UPRIGHT.format(text) for name, text in _UPRIGHT_NAMES.items()},
        "bessel_i0e": _BESSEL.format(0),
        "bessel_i1e": _BESSEL.format(1),
    },
    name=_UPRIGHT,
    space="_",
    call=(_POWER, f"<mrow>{{}}{_APPLY}{{}}</mrow>"),
    brackets=("<mrow><mo>(</mo>", "<mo>)</mo></mrow>"),
    row="<mrow>{}</mrow>",
    plus="<mo>+</mo>",
    times="<mo>&#x22C5;</mo>",
    comma="<mo>,</mo>",
    dot="<mo>&#x22C5;</mo>",
    number="<mn>{}</mn>",
    minus=f"<mrow>{_MINUS}",
    brackets_first=False,
)
