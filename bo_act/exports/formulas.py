"""Formulas for people: LaTeX and plain text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bo_act.activations.expressions import Expression

# How tightly a formula binds: what is looser than its place wants brackets.
_SUM, _PRODUCT, _POWER, _ATOM = range(4)

_LATEX = {
    "zero": (_ATOM, "0"),
    "one": (_ATOM, "1"),
    "negative": (_SUM, "-{p}"),
    "abs": (_ATOM, r"\left|{s}\right|"),
    "reciprocal": (_PRODUCT, r"\frac{{1}}{{{s}}}"),
    "square": (_POWER, "{a}^{{2}}"),
    "exp": (_POWER, "e^{{{s}}}"),
    "expm1": (_SUM, "e^{{{s}}} - 1"),
    "log_sigmoid": (_PRODUCT, r"\log \sigma\left({s}\right)"),
    "sigmoid": (_ATOM, r"\sigma\left({s}\right)"),
    "arcsinh": (_ATOM, r"\operatorname{{arsinh}}\left({s}\right)"),
    "bessel_i0e": (_PRODUCT, r"e^{{-\left|{s}\right|}} I_0\left({s}\right)"),
    "bessel_i1e": (_PRODUCT, r"e^{{-\left|{s}\right|}} I_1\left({s}\right)"),
    "relu": (_ATOM, r"\max\left({s}, 0\right)"),
    "softplus": (_PRODUCT, r"\log\left(1 + e^{{{s}}}\right)"),
}

_BACKSLASHED = ("sinh", "cosh", "tanh", "arctan", "max", "min")

_PLAIN = {
    "zero": (_ATOM, "0"),
    "one": (_ATOM, "1"),
    "negative": (_SUM, "-{p}"),
    "abs": (_ATOM, "|{s}|"),
    "reciprocal": (_PRODUCT, "1 / {a}"),
    "square": (_POWER, "{a}^2"),
}


@dataclass(frozen=True)
class _Part:
    text: str
    level: int

    def at(self, level: int, brackets: tuple[str, str]) -> str:
        return self.text if self.level >= level else f"{brackets[0]}{self.text}{brackets[1]}"


def latex(expression: Expression) -> str:
    r"""Return a formula in LaTeX, for a mathematical environment; ``\sigma`` is the sigmoid."""
    return _walk(expression, in_latex=True).text


def plain(expression: Expression) -> str:
    """Return a formula in plain text, with operators between their operands."""
    return _walk(expression, in_latex=False).text


def _walk(node: Expression, *, in_latex: bool) -> _Part:
    if not node.arguments:
        return _Part("x", _ATOM)
    parts = [_walk(argument, in_latex=in_latex) for argument in node.arguments]
    if node.name == "identity":
        return parts[0]
    brackets = (r"\left(", r"\right)") if in_latex else ("(", ")")
    if len(parts) == 1:
        return _unary(node.name, parts[0], brackets, in_latex=in_latex)
    return _several(node.name.removesuffix("_n"), parts, brackets, in_latex=in_latex)


def _unary(name: str, inner: _Part, brackets: tuple[str, str], *, in_latex: bool) -> _Part:
    known = _LATEX if in_latex else _PLAIN
    if name in known:
        level, form = known[name]
        product, atom = inner.at(_PRODUCT, brackets), inner.at(_ATOM, brackets)
        return _Part(form.format(s=inner.text, p=product, a=atom), level)
    return _Part(f"{_function(name, in_latex)}{brackets[0]}{inner.text}{brackets[1]}", _ATOM)


def _function(name: str, in_latex: bool) -> str:
    if not in_latex:
        return name
    if name in _BACKSLASHED:
        return "\\" + name
    return rf"\operatorname{{{re.sub('_', r' ', name)}}}"


def _several(name: str, parts: list[_Part], brackets: tuple[str, str], *, in_latex: bool) -> _Part:
    if name in ("max", "min"):
        inside = ", ".join(part.text for part in parts)
        return _Part(f"{_function(name, in_latex)}{brackets[0]}{inside}{brackets[1]}", _ATOM)
    first, last = parts[0], parts[-1]
    if name in ("add", "sum"):
        return _Part(" + ".join(_after_plus(part, brackets) for part in parts), _SUM)
    if name == "sub":
        return _Part(f"{first.text} - {last.at(_PRODUCT, brackets)}", _SUM)
    if name in ("mul", "prod"):
        dot = r" \, " if in_latex else " * "
        return _Part(dot.join(part.at(_PRODUCT, brackets) for part in parts), _PRODUCT)
    if name == "div":
        if in_latex:
            return _Part(rf"\frac{{{first.text}}}{{{last.text}}}", _PRODUCT)
        return _Part(f"{first.at(_PRODUCT, brackets)} / {last.at(_POWER, brackets)}", _PRODUCT)
    base = first.at(_ATOM, brackets)
    exponent = f"{{{last.text}}}" if in_latex else last.at(_ATOM, brackets)
    return _Part(f"{base}^{exponent}", _POWER)


def _after_plus(part: _Part, brackets: tuple[str, str]) -> str:
    return f"{brackets[0]}{part.text}{brackets[1]}" if part.text.startswith("-") else part.text
