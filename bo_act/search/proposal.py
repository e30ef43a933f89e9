"""Results of a searcher: a proposal, and the fitted surrogate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bo_act.search.configurations import (
    Configurations,
    ConfigurationSpace,
)
from bo_act.search.surrogate.outcomes import Outcomes
from bo_act.search.surrogate.surrogate import Surrogate


@dataclass(frozen=True)
class Proposal:
    """One candidate and its origin.

    Attributes:
        functions: K indices in the catalogue.
        by: a baseline, a random choice at the start, the acquisition function, or a strategy
            without a surrogate.
        settings: p coordinates of the other parameters.
        mean, deviation: the surrogate's prediction in units of the warped target, if there is one.
        expected: the mean in units of the value, larger is better.
        score: of the acquisition function, if it chose.
        repetition: how often the function had been evaluated before.
        note: anything unexpected, for people.
        outcomes: with several objectives, the expected value of each, in place of mean, deviation
            and ``expected``.
        feasible: the probability that all constraints are satisfied, if there are any.

    Examples:
        >>> Proposal((3,), by="random").index
        3
    """

    functions: tuple[int, ...]
    by: Literal["baseline", "random", "acquisition", "strategy"]
    settings: tuple[float, ...] = ()
    mean: float | None = None
    deviation: float | None = None
    expected: float | None = None
    score: float | None = None
    note: str = ""
    outcomes: tuple[float, ...] = ()
    feasible: float | None = None
    repetition: int = 0

    @property
    def index(self) -> int:
        """The function; of several activations, the first."""
        return self.functions[0]

    @property
    def configuration(self) -> Configurations:
        """The proposal as one configuration."""
        return Configurations(np.array([self.functions]), np.array([self.settings]))


@dataclass(frozen=True, eq=False)
class Fit:
    """A surrogate fitted to observations.

    Attributes:
        space: maps configurations to points.
        model: the surrogate.
        measured: the n configurations that it was fitted to.
        values: (n,) observed values.
        y: (n,) warped targets.
        places: (n,) numbers of the observations; those outside the embedding were left out.
        note: anything unexpected, for people.
        outcomes: surrogates of further objectives and constraints, if there are any.
    """

    space: ConfigurationSpace
    model: Surrogate
    measured: Configurations
    values: NDArray[np.float64]
    y: Tensor
    places: NDArray[np.int64]
    note: str
    outcomes: Outcomes | None = None
