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

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.activations.grouping import Progress, fingerprints, grid, group
from bo_act.activations.module import Activation, evaluate
from bo_act.errors import ExpressionError

if TYPE_CHECKING:
    from bo_act.activations.space import Space


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N distinct functions of a space, and every expression's group.

    Functions are in the order of their first expressions.

    Attributes:
        space: where the expressions come from.
        representative: (N,) number in the space of each group's shortest spelling.
        group: (len(space),) index of each expression's group.
        finite: (N,) whether the function is finite at every point of the domain.
        keys: (N,) uint64 fingerprint of each function's values on the domain.
    """

    space: Space
    representative: np.ndarray
    group: np.ndarray
    finite: np.ndarray
    keys: np.ndarray = field(repr=False)

    @classmethod
    def build(cls, space: Space, *, progress: Progress | None = None) -> Catalogue:
        """Enumerate a space and group what is equal.

        Args:
            space: where the expressions come from.
            progress: called with (evaluations done, evaluations in all).
        """
        found = group(space, progress)
        _, first, of_key = np.unique(found.keys, return_index=True, return_inverse=True)
        # Groups in the order of their first expressions, not of their keys.
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        groups = rank[of_key]
        # Of each group the shortest, and of those the first.
        shortest = np.lexsort((found.lengths, groups))
        starts = np.searchsorted(groups[shortest], np.arange(len(order)))
        first = first[order]
        return cls(space, shortest[starts], groups, found.finite[first], found.keys[first])

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
        domain = self.space.spec.domain
        (key,), _ = fingerprints(evaluate(expression, grid(domain)).unsqueeze(0), domain)
        place = int(np.searchsorted(self.keys, key, sorter=self._order))
        if place == len(self) or self.keys[self._order[place]] != key:
            raise ExpressionError(
                f"{expression} is not in the space {self.space.name!r}: none of its "
                f"{len(self)} functions has these values on [{domain.low:g}, {domain.high:g}]"
            )
        return int(self._order[place])

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.keys)
