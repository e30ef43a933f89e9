"""Arithmetic that writes itself down: one formula, as lines of code or as nodes of a model.

Frameworks without ``expm1``, ``erfc`` or Bessel functions get the formulas of ``primitives.py``.
They are written once, over ``Term``; a ``Writer`` decides the output of each operation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class Writer(ABC):
    """The target of operations."""

    @abstractmethod
    def call(self, name: str, *arguments: str) -> str:
        """Write a primitive with these operands; return the name of its result.

        Primitives are ``add``, ``sub``, ``mul``, ``div``, ``neg``, ``abs``, ``exp``, ``log``,
        ``sqrt``, ``max``, ``min``; ``greater``, ``less`` and ``equal``, which give conditions; and
        ``where``, whose first argument is a condition.
        """

    @abstractmethod
    def constant(self, value: float) -> str:
        """Return a number as text."""

    def term(self, value: Term | float) -> Term:
        """Return a number, or a term, as a term."""
        return value if isinstance(value, Term) else Term(self, self.constant(float(value)))

    def apply(self, name: str, *operands: Term | float) -> Term:
        """Write one primitive."""
        return Term(self, self.call(name, *(self.term(operand).text for operand in operands)))


@dataclass(frozen=True)
class Term:
    """A value in generated code; arithmetic with it generates more.

    Attributes:
        writer: the target.
        text: the name of the value there.
    """

    writer: Writer
    text: str

    def __add__(self, other: Term | float) -> Term:
        return self.writer.apply("add", self, other)

    def __radd__(self, other: float) -> Term:
        return self.writer.apply("add", other, self)

    def __sub__(self, other: Term | float) -> Term:
        return self.writer.apply("sub", self, other)

    def __rsub__(self, other: float) -> Term:
        return self.writer.apply("sub", other, self)

    def __mul__(self, other: Term | float) -> Term:
        return self.writer.apply("mul", self, other)

    def __rmul__(self, other: float) -> Term:
        return self.writer.apply("mul", other, self)

    def __truediv__(self, other: Term | float) -> Term:
        return self.writer.apply("div", self, other)

    def __rtruediv__(self, other: float) -> Term:
        return self.writer.apply("div", other, self)

    def __neg__(self) -> Term:
        return self.writer.apply("neg", self)

    def __abs__(self) -> Term:
        return self.writer.apply("abs", self)

    def __gt__(self, other: Term | float) -> Term:
        return self.writer.apply("greater", self, other)

    def __lt__(self, other: Term | float) -> Term:
        return self.writer.apply("less", self, other)

    def equals(self, other: Term | float) -> Term:
        """Write a comparison."""
        return self.writer.apply("equal", self, other)


def exp(x: Term) -> Term:
    """Write e^x."""
    return x.writer.apply("exp", x)


def log(x: Term) -> Term:
    """Write the natural logarithm."""
    return x.writer.apply("log", x)


def sqrt(x: Term) -> Term:
    """Write the square root."""
    return x.writer.apply("sqrt", x)


def maximum(a: Term, b: Term | float) -> Term:
    """Write the larger of two."""
    return a.writer.apply("max", a, b)


def minimum(a: Term, b: Term | float) -> Term:
    """Write the smaller of two."""
    return a.writer.apply("min", a, b)


def where(condition: Term, a: Term | float, b: Term | float) -> Term:
    """Write a choice; both sides are evaluated."""
    return condition.writer.apply("where", condition, a, b)
