"""Expressions: activation functions as immutable trees, their text, and their canonical form.

The grammar, with the operators of ``operators.py``::

    expression = "x" | NAME "(" expression { "," expression } ")" | NAME

Spaces are allowed between tokens. A name alone is the operator of ``x``. Names of other libraries
are translated if they mean one operator; see ``names.py``. Length and depth are bounded, so any
text is safe to parse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bo_act.activations.names import hint, operator_named
from bo_act.activations.operators import OPERATORS
from bo_act.errors import ExpressionError

MAX_LENGTH = 10_000
MAX_DEPTH = 64

_TOKEN = re.compile(r"\s*(?:([A-Za-z_][A-Za-z_0-9]*(?:\.[A-Za-z_0-9]+)*)|([(),]))")
_INSTEAD = {
    "+": "write add(a,b) for a + b",
    "-": "write sub(a,b) for a - b, and negative(a) for -a",
    "*": "write mul(a,b) for a * b",
    "/": "write div(a,b) for a / b",
    "^": "write pow(a,b) for a ^ b",
    "|": "write abs(a) for |a|",
} | dict.fromkeys("0123456789", "build numbers from zero(x) and one(x)")


@dataclass(frozen=True, slots=True)
class Expression:
    """A node: the pre-activation ``x``, or an operator with its arguments.

    Attributes:
        name: ``"x"`` or an operator's name.
        arguments: the operands, none for ``x``.

    Examples:
        >>> import bo_act
        >>> expression = bo_act.parse("mul(x,sigmoid(x))")
        >>> expression.name, len(expression.arguments)
        ('mul', 2)
    """

    name: str
    arguments: tuple[Expression, ...] = ()

    def __str__(self) -> str:
        if not self.arguments:
            return self.name
        return f"{self.name}({','.join(map(str, self.arguments))})"

    def nodes(self) -> Iterator[Expression]:
        """Yield all nodes, arguments before their operators."""
        for argument in self.arguments:
            yield from argument.nodes()
        yield self

    @property
    def depth(self) -> int:
        """The number of operators on the longest way down to ``x``."""
        return 1 + max(argument.depth for argument in self.arguments) if self.arguments else 0


X = Expression("x")
ZERO = Expression("zero", (X,))
ONE = Expression("one", (X,))


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        ExpressionError: the text is not an expression; says where, and what was expected.

    Examples:
        >>> str(parse("relu(x)"))
        'relu(x)'
    """
    if not isinstance(text, str):
        raise ExpressionError(f"expected an expression as text, got {type(text).__name__}")
    return parse_tree(text, arities={name: op.accepts for name, op in OPERATORS.items()})


def parse_tree(text: str, *, arities: dict[str, object]) -> Expression:
    """Read a tree whose inner nodes are named as in ``arities``; see ``parse``.

    Args: text: what to read.
        arities: name → predicate on the number of arguments. Schemas of spaces use more names
            than expressions do.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            f"the text has {len(text)} characters, at most {MAX_LENGTH} are allowed"
        )
    reader = _Reader(text, arities)
    tree = reader.node(0)
    reader.end()
    return tree


class _Reader:
    """Recursive descent over one text; ``position`` is where the next token starts."""

    def __init__(self, text: str, arities: dict[str, object]) -> None:
        self.text = text
        self.arities = arities
        self.position = 0

    def error(self, message: str, position: int) -> ExpressionError:
        return ExpressionError(message, text=self.text, position=position)

    def token(self) -> tuple[str, int]:
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            rest = self.text[self.position :]
            position = self.position + len(rest) - len(rest.lstrip())
            if not rest.strip():
                return "", position
            instead = _INSTEAD.get(character := rest.lstrip()[0])
            advice = f"; {instead}" if instead else ""
            raise self.error(f"unexpected character {character!r}{advice}", position)
        self.position = match.end()
        group = 1 if match.group(1) else 2
        return match.group(group), match.start(group)

    def node(self, depth: int) -> Expression:
        name, start = self.token()
        if not name:
            raise self.error("expected 'x' or an operator, but the text ends", start)
        if name in "(),":
            raise self.error(f"expected 'x' or an operator, got {name!r}", start)
        if name == "x":
            return X
        written, name = name, self.operator(name, start)
        if depth >= MAX_DEPTH:
            raise self.error(f"nested more than {MAX_DEPTH} operators deep", start)
        before = self.position
        bracket, position = self.token()
        if bracket in ("", ",", ")") and name in OPERATORS and OPERATORS[name].kind == "unary":
            self.position = before
            return Expression(name, (X,))
        if bracket != "(":
            came = repr(bracket) if bracket else "the end of the text"
            raise self.error(f"expected '(' after {written!r}, got {came}", position)
        arguments = [self.node(depth + 1)]
        while True:
            mark, position = self.token()
            if mark == ")":
                break
            if mark != ",":
                came = repr(mark) if mark else "the end of the text"
                raise self.error(f"expected ',' or ')' in {name}(...), got {came}", position)
            arguments.append(self.node(depth + 1))
        self.check(name, len(arguments), start)
        return Expression(name, tuple(arguments))

    def operator(self, name: str, start: int) -> str:
        """Return the operator that a name means, or the name of a slot of a schema."""
        own = name if name in self.arities else operator_named(name)
        if own is None or own not in self.arities:
            shown = name if len(name) <= 40 else f"{name[:37]}..."
            raise self.error(f"unknown operator {shown!r}{hint(name, self.arities)}", start)
        return own

    def check(self, name: str, count: int, start: int) -> None:
        accepts = self.arities[name]
        if callable(accepts) and not accepts(count):
            takes = f" takes {OPERATORS[name].arity}" if name in OPERATORS else ""
            raise self.error(f"{name}{takes or ' does not take this'}, got {count}", start)

    def end(self) -> None:
        rest, start = self.token()
        if rest:
            raise self.error(f"expected the end of the text, got {rest!r}", start)


# --- canonical form -------------------------------------------------------------------------

CONSTANTS = ("zero", "one")
"""Operators whose value does not depend on x; written of x alone."""

# Idempotent.
_IDEMPOTENT = {"abs", "relu"}


def canonical(expression: Expression) -> Expression:
    """Return the canonical form: equal in value at every x, in every floating dtype.

    Arguments of commutative operators are ordered (shorter text first, then alphabetically);
    ``identity``, ``zero`` and ``one`` are simplified if that is exact for every x, even where a
    part is infinite or NaN (so ``mul(exp(x),zero(x))`` stays). The sign of zero may change, and so
    the sign of an infinity after division by it. Sums and products of three and more are equal up
    to rounding, if no partial result overflows.

    Examples:
        >>> import bo_act
        >>> str(canonical(bo_act.parse("add(tanh(x),x)")))
        'add(x,tanh(x))'
    """
    if expression == X:
        return X
    return simplified(expression.name, tuple(map(canonical, expression.arguments)))


def simplified(name: str, arguments: tuple[Expression, ...]) -> Expression:
    """Return the canonical form of an operator with operands in canonical form."""
    if name in CONSTANTS:
        return Expression(name, (X,))
    if len(arguments) == 1:
        return _unary(name, arguments[0])
    if OPERATORS[name].commutative:
        arguments = tuple(sorted(arguments, key=_order))
    return _several(name, arguments)


def _order(expression: Expression) -> tuple[int, str]:
    text = str(expression)
    return len(text), text


def _unary(name: str, inner: Expression) -> Expression:
    if name == "identity":
        return inner
    if name == "negative" and inner.name == "negative":
        return inner.arguments[0]
    if name in _IDEMPOTENT and inner.name == name:
        return inner
    if name in ("abs", "square", "cosh") and inner.name == "negative":
        return Expression(name, inner.arguments)
    return Expression(name, (inner,))


def _several(name: str, arguments: tuple[Expression, ...]) -> Expression:
    first, second = arguments[0], arguments[-1]
    if name in ("add", "sum_n", "mul", "prod_n"):
        neutral = ZERO if name in ("add", "sum_n") else ONE
        operands = tuple(a for a in arguments if a != neutral) or (neutral,)
        return operands[0] if len(operands) == 1 else Expression(name, operands)
    if name in ("max", "min", "max_n", "min_n"):
        operands = tuple(dict.fromkeys(arguments))
        return operands[0] if len(operands) == 1 else Expression(name, operands)
    if (name == "sub" and second == ZERO) or (name in ("div", "pow") and second == ONE):
        return first
    if name == "sub" and first == ZERO:
        return _unary("negative", second)
    if name == "div" and first == ONE:
        return _unary("reciprocal", second)
    # IEEE 754: pow(a, 0) and pow(1, b) are 1 for every a and b, also for NaN.
    if name == "pow" and (second == ZERO or first == ONE):
        return ONE
    return Expression(name, arguments)
