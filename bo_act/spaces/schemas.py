"""Schemas: shapes of trees with slots for operators.

The inner nodes of a schema are slots (``unary``, ``binary``, ``nary``) or fixed operators. Slots
are named by their place in the tree: ``binary(unary(x),unary(x))`` has ``binary``, ``left`` and
``right``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import permutations

from bo_act.activations.expressions import Expression, X, parse_tree
from bo_act.activations.operators import OPERATORS
from bo_act.errors import ExpressionError, SpecError
from bo_act.specs import SpaceSpec

KINDS = ("unary", "binary", "nary")


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a schema that takes one of several operators.

    Attributes:
        name: the Optuna parameter.
        choices: operator names, in the order of the space file.
    """

    name: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Schema:
    """One schema with its slots in the order of the enumeration (from the root, left to right).

    Attributes:
        text: as written in the space file.
        tree: inner nodes are slots' names or operators.
        slots: empty for a single expression.
    """

    text: str
    tree: Expression
    slots: tuple[Slot, ...]

    def __len__(self) -> int:
        count = 1
        for slot in self.slots:
            count *= len(slot.choices)
        return count

    def fill(self, operators: Mapping[str, str]) -> Expression:
        """Return the expression with the given operator in each slot."""

        def build(node: Expression) -> Expression:
            arguments = tuple(build(argument) for argument in node.arguments)
            return Expression(operators.get(node.name, node.name), arguments)

        return build(self.tree)

    def operators(self, number: int) -> dict[str, str]:
        """Return the operator of each slot for the expression of that number."""
        chosen = []
        for slot in reversed(self.slots):
            number, choice = divmod(number, len(slot.choices))
            chosen.append((slot.name, slot.choices[choice]))
        return dict(reversed(chosen))

    def number(self, operators: Mapping[str, str]) -> int:
        """Return the number of the expression with these operators in its slots."""
        number = 0
        for slot in self.slots:
            number = number * len(slot.choices) + slot.choices.index(operators[slot.name])
        return number

    def match(self, expression: Expression) -> dict[str, str] | None:
        """Return the operators in the slots that give an expression, or None."""
        choices = {slot.name: slot.choices for slot in self.slots}

        def fit(node: Expression, tree: Expression) -> dict[str, str] | None:
            if node == X:
                return {} if tree == X else None
            allowed = choices.get(node.name, (node.name,))
            if tree.name in allowed and len(tree.arguments) == len(node.arguments):
                for order in _orders(tree):
                    parts = [fit(a, b) for a, b in zip(node.arguments, order, strict=True)]
                    whole = [part for part in parts if part is not None]
                    if len(whole) == len(parts):
                        own = {node.name: tree.name} if node.name in choices else {}
                        return {key: v for part in (own, *whole) for key, v in part.items()}
            if node.name in choices and len(node.arguments) == 1 and "identity" in allowed:
                inner = fit(node.arguments[0], tree)
                return None if inner is None else {node.name: "identity", **inner}
            return None

        return fit(self.tree, expression)


def read_schema(text: str, spec: SpaceSpec) -> Schema:
    """Read a schema of a space file.

    Raises:
        SpecError: it is not a schema, or the file lists no operators for one of its slots.
    """
    arities: dict[str, object] = {name: op.accepts for name, op in OPERATORS.items()}
    arities |= {
        "unary": lambda count: count == 1,
        "binary": lambda count: count == 2,
        "nary": lambda count: count >= 2,
    }
    try:
        tree = parse_tree(text, arities=arities)
    except ExpressionError as error:
        raise SpecError(f"space {spec.name!r}, schemas: {error}") from error
    slots: list[Slot] = []

    def name_slots(node: Expression, position: str) -> Expression:
        if node == X:
            return node
        name = node.name
        if name in KINDS:
            choices: tuple[str, ...] = getattr(spec, name)
            if not choices:
                raise SpecError(
                    f"space {spec.name!r}: the schema {text!r} has a {name!r} slot, but the file "
                    f"lists no {name} operators; add `{name} = [...]`"
                )
            # The kind is in the name, so that schemas can share a slot of the same kind.
            name = position + ("" if node.name == "unary" else f"_{name}") if position else name
            slots.append(Slot(name, choices))
        children = _places(len(node.arguments))
        arguments = tuple(
            name_slots(argument, f"{position}_{child}" if position else child)
            for argument, child in zip(node.arguments, children, strict=True)
        )
        return Expression(name, arguments)

    return Schema(text, name_slots(tree, ""), tuple(slots))


def _orders(tree: Expression) -> Iterable[tuple[Expression, ...]]:
    """Return the possible orders of an operator's operands."""
    few = len(tree.arguments) <= 4
    return permutations(tree.arguments) if few and _is_commutative(tree) else (tree.arguments,)


def _is_commutative(tree: Expression) -> bool:
    return tree.name in OPERATORS and OPERATORS[tree.name].commutative


def _places(count: int) -> tuple[str, ...]:
    if count == 1:
        return ("inner",)
    return ("left", "right") if count == 2 else tuple(f"arg{i + 1}" for i in range(count))
