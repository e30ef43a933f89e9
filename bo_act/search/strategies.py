"""Strategies without a surrogate: random search and regularized evolution.

A strategy chooses after the start of a search; ``Searcher`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from bo_act.errors import ExpressionError, SearchError
from bo_act.search.observations import Observations
from bo_act.spaces.enumeration import SCHEMA_SLOT
from bo_act.spaces.space import Space
from bo_act.user_code.files import call_with

# Children tried per number of mutations, and the largest number of mutations.
_ATTEMPTS = 25
_MOST_MUTATIONS = 4


class Strategy(Protocol):
    """Anything that chooses among candidates by the observations.

    ``choose`` gets the arguments of its signature by name, out of those listed below.

    Examples:
        >>> class Nearest:
        ...     def choose(self, embedding, observations, candidates):
        ...         best = observations.indices[observations.values.argmax()]
        ...         away = embedding.points[candidates] - embedding.points[best]
        ...         return candidates[(away ** 2).sum(axis=1).argmin()]
    """

    @property
    def choose(self) -> Callable[..., int]:
        """A method that returns one of the candidates, with any of these arguments.

        - ``embedding``: of the N functions; ``embedding.points`` (N, d), ``embedding.valid`` (N,).
        - ``observations``: n values so far, in the order of their trials.
        - ``candidates``: ascending indices of functions that may be proposed; at least one.
        - ``pending``: indices under evaluation.
        - ``generator``: of all random choices; it depends only on seed and trial number.
        """
        ...


def chosen_by(strategy: Strategy, candidates: np.ndarray, **others: Any) -> int:
    """Return the choice of a strategy.

    Args:
        strategy: any.
        candidates: as in ``Strategy.choose``.
        others: ``embedding``, ``observations``, ``pending``, ``generator``, as there.

    Raises:
        SearchError: it fails, or does not return a candidate.
    """
    what = f"the strategy {type(strategy).__name__}"
    offered = {**others, "candidates": candidates}
    chosen = call_with(strategy.choose, offered, what=what, error=SearchError)
    if np.ndim(chosen) or chosen not in candidates:
        raise SearchError(
            f"{what}: expected one of the {len(candidates)} candidates, got {chosen!r:.60}"
        )
    return int(chosen)


class RandomSearch:
    """Chooses candidates with equal probability."""

    def choose(
        self,
        observations: Observations,
        candidates: np.ndarray,
        generator: np.random.Generator,
    ) -> int:
        """Return a random candidate."""
        del observations
        return int(generator.choice(candidates))


@dataclass(frozen=True)
class Evolution:
    """Regularized evolution (Real et al. 2019, arXiv 1802.01548) of expressions.

    The last ``population`` observed functions are alive. The best of ``tournament`` random ones
    among them is the parent; its child has another operator in one slot, or another schema. A child
    that is no candidate, such as an evaluated function, is drawn again.

    Attributes:
        space: with the slots to mutate.
        population: functions alive.
        tournament: functions that compete to be the parent.
    """

    space: Space
    population: int = 20
    tournament: int = 5

    def choose(
        self,
        observations: Observations,
        candidates: np.ndarray,
        generator: np.random.Generator,
    ) -> int:
        """Return a child of a good living function, or a random candidate if all attempts fail."""
        if not observations.is_plain:
            raise SearchError(
                "evolution chooses parents by one value, and the trials of this study have several "
                "objectives, or constraints; leave the strategy out"
            )
        alive = observations.indices[-self.population :]
        values = observations.values[-self.population :]
        if len(alive):
            size = min(self.tournament, len(alive))
            rivals = generator.choice(len(alive), size=size, replace=False)
            parent = int(alive[rivals[values[rivals].argmax()]])
            free = frozenset(candidates.tolist())
            for mutations in range(1, _MOST_MUTATIONS + 1):
                for _ in range(_ATTEMPTS):
                    child = self._child(parent, mutations, generator)
                    if child in free:
                        return child
        return int(generator.choice(candidates))

    def _child(self, parent: int, mutations: int, generator: np.random.Generator) -> int:
        catalogue, choices = self.space.catalogue, self.space.distributions
        params: dict[str, str] = dict(catalogue.params(parent))
        for _ in range(mutations):
            name = str(generator.choice(sorted(params)))
            others = [c for c in choices[name].choices if c != params[name]]
            if not others:
                continue
            params[name] = str(others[generator.integers(len(others))])
            if name == SCHEMA_SLOT:  # another schema has its own slots
                params = self._filled(params[SCHEMA_SLOT], generator)
        try:
            return catalogue.index(params)
        except ExpressionError:  # without a required property: no candidate
            return -1

    def _filled(self, schema: str, generator: np.random.Generator) -> dict[str, str]:
        """Draw an expression of a schema, with equal probabilities."""
        names = self.space.slots_of_schema(schema)
        choices = [self.space.distributions[name].choices for name in names]
        drawn = [str(slot[generator.integers(len(slot))]) for slot in choices]
        return {SCHEMA_SLOT: schema} | dict(zip(names, drawn, strict=True))
