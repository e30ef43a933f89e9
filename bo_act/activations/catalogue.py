"""Catalogue: the distinct functions of a space.

Two expressions are the same function when they agree at every point of the domain's grid, in
float64, to a tolerance in arcsinh of the value: absolute for small values, relative for large
ones. Each group is represented by its shortest spelling.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bo_act.activations.expressions import Expression, X, canonical, parse
from bo_act.activations.module import Activation, evaluate
from bo_act.activations.operators import OPERATORS
from bo_act.errors import ExpressionError
from bo_act.specs import DomainSpec

if TYPE_CHECKING:
    from bo_act.activations.schemas import Shape
    from bo_act.activations.space import Space

# Rows of values evaluated at once: 4,096 functions at 1,000 points are 33 MB.
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N distinct functions of a space, and every expression's group.

    Attributes:
        space: where the expressions come from.
        representative: (N,) number in the space of each group's shortest spelling; ascending.
        group: (len(space),) index of each expression's group.
        finite: (N,) whether the function is finite at every point of the domain.
        keys: fingerprint of the values on the domain → index.
    """

    space: Space
    representative: np.ndarray
    group: np.ndarray
    finite: np.ndarray
    keys: Mapping[bytes, int] = field(repr=False)

    @classmethod
    def build(cls, space: Space) -> Catalogue:
        """Enumerate a space and group what is equal."""
        first: dict[bytes, int] = {}
        group = np.empty(len(space), dtype=np.int64)
        finite: list[bool] = []
        number = 0
        for values in _values_of_all(space):
            for key, is_finite in zip(
                fingerprints(values, space.spec.domain),
                torch.isfinite(values).all(dim=1).tolist(),
                strict=True,
            ):
                index = first.setdefault(key, len(first))
                if index == len(finite):
                    finite.append(is_finite)
                group[number] = index
                number += 1
        best: list[tuple[int, int] | None] = [None] * len(first)
        for number, expression in enumerate(space):
            index = int(group[number])
            length = (len(str(canonical(expression))), number)
            if (shortest := best[index]) is None or length < shortest:
                best[index] = length
        representative = np.array([entry[1] for entry in best if entry is not None], dtype=np.int64)
        return cls(space, representative, group, np.array(finite, dtype=bool), first)

    def __len__(self) -> int:
        return len(self.representative)

    def __repr__(self) -> str:
        return (
            f"Catalogue({self.space.name!r}, {len(self.group)} expressions, "
            f"{len(self)} functions, {int(self.finite.sum())} finite)"
        )

    @cached_property
    def hash(self) -> str:
        """Identify the catalogue by its functions in their order."""
        digest = hashlib.sha256(self.space.hash.encode())
        digest.update(self.representative.tobytes())
        return digest.hexdigest()

    def expression(self, index: int) -> Expression:
        """Return the shortest spelling of a function, in canonical form."""
        return canonical(self.space.expression(int(self.representative[index])))

    def text(self, index: int) -> str:
        """Return the text of a function's shortest spelling."""
        return str(self.expression(index))

    def activation(self, index: int) -> Activation:
        """Return a function as a torch module."""
        return Activation(self.expression(index))

    def params(self, index: int) -> dict[str, str]:
        """Return the Optuna parameters of a function's representative."""
        return self.space.params(int(self.representative[index]))

    def equivalents(self, index: int) -> Iterator[Expression]:
        """Yield every expression of the space that is this function, as enumerated."""
        for number in np.flatnonzero(self.group == index):
            yield self.space.expression(int(number))

    def index(self, function: str | Expression | Mapping[str, object]) -> int:
        """Return the index of a function.

        Args:
            function: any spelling (also one outside the schemas, as long as it is equal to a
                member on the domain), or Optuna parameters.

        Raises:
            ExpressionError: no expression, or no member of the space.
        """
        if isinstance(function, Mapping):
            return int(self.group[self.space.number(function)])
        expression = parse(function) if isinstance(function, str) else function
        values = evaluate(expression, grid(self.space.spec.domain)).unsqueeze(0)
        (key,) = fingerprints(values, self.space.spec.domain)
        if key not in self.keys:
            raise ExpressionError(
                f"{expression} is not in the space {self.space.name!r}: none of its "
                f"{len(self)} functions has these values on "
                f"[{self.space.spec.domain.low:g}, {self.space.spec.domain.high:g}]"
            )
        return self.keys[key]


def grid(domain: DomainSpec) -> Tensor:
    """Return the domain's points, (points,) float64."""
    return torch.linspace(domain.low, domain.high, domain.points, dtype=torch.float64)


def fingerprints(values: Tensor, domain: DomainSpec) -> list[bytes]:
    """Return 16 bytes a function, equal where the functions are.

    Args:
        values: (rows, points) float64 on the domain's grid.
        domain: gives the tolerance.
    """
    cells = torch.round(torch.asinh(values) / domain.tolerance)
    # Infinities stay themselves; all NaN are one; -0.0 + 0.0 is 0.0.
    cells = torch.where(torch.isnan(cells), torch.nan, cells) + 0.0
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in cells.numpy()]


def _values_of_all(space: Space) -> Iterator[Tensor]:
    """Yield (rows, points) values of all expressions in the order of their numbers."""
    x = grid(space.spec.domain)
    for shape in space.shapes:
        yield from _chunked(_values(shape.tree, shape, x))
    if space.singles:
        yield torch.stack([evaluate(expression, x) for expression in space.singles])


def _chunked(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    for block in blocks:
        yield from block.split(_CHUNK)


def _values(node: Expression, shape: Shape, x: Tensor) -> Iterator[Tensor]:
    """Yield the values of all fillings of a subtree, slots in order, the last running fastest."""
    if node == X:
        yield x.unsqueeze(0)
        return
    choices = {slot.name: slot.choices for slot in shape.slots}.get(node.name, (node.name,))
    arguments = [torch.cat(list(_values(a, shape, x))) for a in node.arguments]
    for name in choices:
        function = OPERATORS[name].function
        if len(arguments) == 1:
            yield function(arguments[0])
            continue
        first, *others = arguments
        for row in first:
            # One row of the first argument against all of the others: bounded memory.
            counts = [len(other) for other in others]
            spread = [
                other.view(*[-1 if i == j else 1 for j in range(len(counts))], len(x))
                for i, other in enumerate(others)
            ]
            block = function(row.expand(*[1] * len(counts), len(x)), *spread)
            yield block.expand(*counts, len(x)).reshape(-1, len(x))
