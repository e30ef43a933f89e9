"""What a searcher returns: a proposal, and the surrogate that it was chosen by."""

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
        by: a baseline, a random choice of the start, the acquisition function, or a strategy
            that needs no surrogate.
        settings: p coordinates of the other parameters.
        mean, deviation: the surrogate's prediction in units of the warped target, if there is one.
        expected: the mean in units of the value, larger is better.
        score: of the acquisition function, if it chose.
        repetition: how often the function had been evaluated before.
        note: anything unexpected, for people.
        outcomes: of several objectives the expected value of each, in place of mean, deviation and
            ``expected``.
        feasible: the probability that all constraints are satisfied, where there are some.

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
        """The function; the first of several."""
        return self.functions[0]

    @property
    def configuration(self) -> Configurations:
        """What is proposed, as one configuration."""
        return Configurations(np.array([self.functions]), np.array([self.settings]))


@dataclass(frozen=True, eq=False)
class Fit:
    """A surrogate fitted to observations.

    Attributes:
        space: what places configurations.
        model: the surrogate.
        measured: the n configurations that it was fitted to.
        values: (n,) as observed.
        y: (n,) warped.
        places: (n,) among the observations; those without a place in the embedding were left out.
        note: what went other than planned.
        outcomes: further objectives and constraints, where there are some.
    """

    space: ConfigurationSpace
    model: Surrogate
    measured: Configurations
    values: NDArray[np.float64]
    y: Tensor
    places: NDArray[np.int64]
    note: str
    outcomes: Outcomes | None = None
