"""Parameters besides the function (learning rate, width, ...) as points in the unit cube."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.stats import qmc

from bo_act.optuna_internals import SearchSpaceTransform

# Two choices of a category are as far apart as the ends of a range.
_ONE_HOT = 1 / math.sqrt(2)
_NEAR = (0.2, 0.05)  # standard deviations of steps from a point: to look around, and to refine
_OTHER_CHOICE = 0.2  # share of such steps that change a category

Settings = NDArray[np.float64]


class Parameters:
    """The p coordinates of the parameters of a study.

    A number is one coordinate in [0, 1], logarithmic where its distribution is; a category is one
    coordinate a choice, all 0 but one. Every point that is returned is one that the distributions
    allow: integers and steps are rounded.

    Args:
        distributions: of Optuna, by name; of one value each is left out.

    Attributes:
        width: p.
        blocks: columns of each.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution] | None = None) -> None:
        self.distributions = {
            name: distribution
            for name, distribution in sorted((distributions or {}).items())
            if not distribution.single()
        }
        self.blocks: dict[str, slice] = {}
        self.width = 0
        if not self.distributions:
            return
        self._transform = SearchSpaceTransform(self.distributions, transform_0_1=True)
        self.width = len(self._transform.bounds)
        self._scale = np.ones(self.width)
        columns = self._transform.column_to_encoded_columns
        for (name, distribution), own in zip(self.distributions.items(), columns, strict=True):
            self.blocks[name] = slice(int(own[0]), int(own[-1]) + 1)
            if isinstance(distribution, CategoricalDistribution):
                self._scale[own] = _ONE_HOT

    @property
    def count(self) -> float:
        """How many points there are; infinity where a parameter is continuous."""
        return math.prod(_choices(distribution) for distribution in self.distributions.values())

    def encode(self, values: Mapping[str, Any]) -> Settings:
        """Return where values lie, (p,).

        Args:
            values: one of each parameter, and others; numbers beyond their range lie at its end.

        Raises:
            ValueError: a category has no such choice.
        """
        if not self.width:
            return np.empty(0)
        place = self._transform.transform({name: values[name] for name in self.distributions})
        return np.asarray(np.clip(place, 0, 1) * self._scale)

    def decode(self, point: Settings) -> dict[str, Any]:
        """Return the values at a point (p,)."""
        return self._transform.untransform(point / self._scale) if self.width else {}

    def draw(self, count: int, generator: np.random.Generator) -> Settings:
        """Return points spread evenly over the cube, (count, p)."""
        if not self.width:
            return np.empty((count, 0))
        sobol = qmc.Sobol(self.width, rng=generator)
        return self._allowed(sobol.random(2 ** math.ceil(math.log2(max(count, 1))))[:count])

    def near(self, point: Settings, count: int, generator: np.random.Generator) -> Settings:
        """Return points around one, (count, p), half of them very near."""
        if not self.width:
            return np.empty((count, 0))
        wide, narrow = _NEAR
        steps = np.where(np.arange(count) % 2, wide, narrow)[:, None]
        points = np.clip(point + steps * generator.standard_normal((count, self.width)), 0, 1)
        for name, columns in self.blocks.items():
            if isinstance(self.distributions[name], CategoricalDistribution):
                points[:, columns] = point[columns]
                other = generator.random(count) < _OTHER_CHOICE
                points[other, columns] = generator.random((int(other.sum()), self._wide(columns)))
        return self._allowed(points)

    @staticmethod
    def _wide(columns: slice) -> int:
        return int(columns.stop - columns.start)

    def _allowed(self, points: Settings) -> Settings:
        return np.stack([self.encode(self._transform.untransform(point)) for point in points])


def _choices(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if not isinstance(distribution, IntDistribution | FloatDistribution) or not distribution.step:
        return math.inf
    return 1 + round((distribution.high - distribution.low) / distribution.step)
