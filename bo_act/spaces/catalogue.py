"""Catalogue: the distinct functions of a space.

Two expressions are the same function if they agree at every point of the domain's grid, in
float64, within a tolerance in arcsinh of the value: absolute for small values, relative for large
ones. Each function is represented by its most stable spelling (some spellings are 0 / 0 at zero),
and among those by the shortest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from bo_act.activations.evaluation import evaluate
from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.activations.module import Activation
from bo_act.errors import ExpressionError, SpecError
from bo_act.spaces.deduplication import Progress, fingerprints, grid, group
from bo_act.spaces.enumeration import Enumeration
from bo_act.spaces.smoothness import left_out, satisfied, unsatisfied
from bo_act.spaces.stability import faults_of
from bo_act.specs.space import Requirement

OF_FUNCTIONS = ("representative", "shortest", "finite", "keys")
"""Attributes of a catalogue that are arrays (N,)."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """N distinct functions of a space, and the function of every expression.

    Functions are in the order of their first expressions.

    Attributes:
        space: where the expressions come from.
        representative: (N,) number in the space of each function's representative spelling.
        shortest: (N,) number in the space of each function's shortest spelling, stable or not.
        group: (len(space),) index of each expression's function, -1 if it violates a requirement
            of the space.
        finite: (N,) whether the function is finite at every point of the domain.
        keys: (N,) uint64 fingerprint of each function's values on the domain.

    Examples:
        >>> import bo_act
        >>> catalogue = bo_act.load_space("classic").catalogue
        >>> catalogue.text(catalogue.index("max(x,zero(x))"))
        'relu(x)'
    """

    space: Enumeration
    representative: np.ndarray
    shortest: np.ndarray
    group: np.ndarray
    finite: np.ndarray
    keys: np.ndarray = field(repr=False)

    @classmethod
    def build(cls, space: Enumeration, *, progress: Progress | None = None) -> Catalogue:
        """Enumerate a space and deduplicate its functions.

        Args:
            space: where the expressions come from.
            progress: called with (evaluations done, evaluations in all).
        """
        grouping = group(space, progress)
        _, first, of_key = np.unique(grouping.keys, return_index=True, return_inverse=True)
        # Order groups by their first expressions, not by their keys.
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        groups = rank[of_key]
        starts = np.searchsorted(np.sort(groups), np.arange(len(order)))
        # The first of the shortest expressions of each group.
        shortest = np.lexsort((grouping.lengths, groups))[starts]
        stable = np.lexsort((grouping.lengths, grouping.faults, groups))[starts]
        for index in np.flatnonzero(stable != shortest):
            stable[index] = _steadier(space, int(shortest[index]), int(stable[index]))
        first = first[order]
        all_of_them = cls(
            space, stable, shortest, groups, grouping.finite[first], grouping.keys[first]
        )
        return all_of_them._satisfying(space.spec.require, progress)

    def _satisfying(self, require: Collection[Requirement], progress: Progress | None) -> Catalogue:
        """Return the catalogue without the functions that violate a requirement."""
        if not require:
            return self
        masks = satisfied(self, self.space.spec.domain, require, progress=progress)
        good = np.logical_and.reduce(list(masks.values()))
        if not good.any():
            counts = ", ".join(f"{name} by {int(mask.sum()):,}" for name, mask in masks.items())
            raise SpecError(
                f"space {self.space.name!r}, require: none of its {len(self):,} functions has all "
                f"the required properties ({counts}); require fewer"
            )
        # Expressions of removed functions have the group -1.
        new_index = np.where(good, np.cumsum(good) - 1, -1)
        arrays = (getattr(self, name)[good] for name in OF_FUNCTIONS)
        representative, shortest, finite, keys = arrays
        return Catalogue(self.space, representative, shortest, new_index[self.group], finite, keys)

    def __len__(self) -> int:
        return len(self.representative)

    def __repr__(self) -> str:
        return (
            f"Catalogue({self.space.name!r}, {len(self.group)} expressions, "
            f"{len(self)} functions, {int(self.finite.sum())} finite)"
        )

    @cached_property
    def hash(self) -> str:
        """Identify the catalogue by its functions in their order, however they are written."""
        digest = hashlib.sha256(self.space.hash.encode())
        digest.update(self.shortest.tobytes())
        return digest.hexdigest()

    def expression(self, index: int) -> Expression:
        """Return a function's representative spelling, in canonical form."""
        return canonical(self.space.expression(int(self.representative[index])))

    def text(self, index: int) -> str:
        """Return the text of a function's representative spelling."""
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
            function: any spelling (even outside the schemas, if it equals a member on the domain),
                or Optuna parameters.

        Raises:
            ExpressionError: not an expression, or not in the space.
        """
        if isinstance(function, Mapping):
            number = self.space.number(function)
            if self.group[number] < 0:
                raise left_out(self.space.expression(number), self.space.spec)
            return int(self.group[number])
        expression = parse(function) if isinstance(function, str) else function
        domain = self.space.spec.domain
        (key,), _ = fingerprints(evaluate(expression, grid(domain)).unsqueeze(0), domain)
        rank = int(np.searchsorted(self.keys, key, sorter=self._order))
        if rank == len(self) or self.keys[self._order[rank]] != key:
            if unsatisfied(expression, domain, self.space.spec.require):
                raise left_out(expression, self.space.spec)
            raise ExpressionError(
                f"{expression} is not in the space {self.space.name!r}: none of its "
                f"{len(self)} functions has these values on [{domain.low:g}, {domain.high:g}]"
            )
        return int(self._order[rank])

    @cached_property
    def _order(self) -> np.ndarray:
        return np.argsort(self.keys)


def _steadier(space: Enumeration, shortest: int, stable: int) -> int:
    """Return the more stable of two expressions; the first if they are equal.

    ``stable`` was found by the chain rule from the inside out, which can overflow where autograd,
    from the outside in, does not.
    """
    of_shortest, of_stable = (faults_of(canonical(space.expression(n))) for n in (shortest, stable))
    return stable if of_stable < of_shortest else shortest
