"""Configurations: the functions and other parameters of a trial, as points.

K  activations of a configuration            p  coordinates of the other parameters
n  configurations                            N  functions of the catalogue

The point of a configuration joins the embedded points of its functions and the coordinates of its
parameters; each part is a block of the kernel. Mostly K = 1 and p = 0: a configuration is one
function.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from scipy.stats import qmc
from torch import Tensor

from bo_act.dependencies.optuna_internals import SearchSpaceTransform
from bo_act.errors import SearchError
from bo_act.search.embedding.embedding import Embedding

ONE = ("",)
"""The single activation of a study has no name."""

# Two choices of a category have the same distance as the ends of a range.
_ONE_HOT = 1 / math.sqrt(2)
_NEAR = (0.2, 0.05)  # standard deviations of steps from a point: to explore, and to refine
_OTHER_CHOICE = 0.2  # share of these steps that change a category

Settings = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Configurations:
    """n configurations: functions and settings of other parameters.

    Attributes:
        functions: (n, K) indices in the catalogue.
        settings: (n, p) coordinates of the parameters.

    Examples:
        >>> import numpy as np
        >>> some = Configurations(np.array([[3, 7], [3, 8]]), np.array([[0.5], [0.1]]))
        >>> len(some), some[[1]].functions.tolist()
        (2, [[3, 8]])
    """

    functions: NDArray[np.int64]
    settings: Settings

    def __post_init__(self) -> None:
        if self.functions.ndim != 2 or len(self.functions) != len(self.settings):
            raise SearchError(
                f"expected functions (n, K) and settings (n, p), got {self.functions.shape} and "
                f"{self.settings.shape}"
            )

    def __len__(self) -> int:
        return len(self.functions)

    def __getitem__(self, chosen: Any) -> Configurations:
        return Configurations(self.functions[chosen], self.settings[chosen])

    @classmethod
    def of(
        cls, given: Configurations | Iterable[int], like: Configurations | None = None
    ) -> Configurations:
        """Return the argument as configurations.

        Args:
            given: configurations, or (n,) indices of functions.
            like: gives K and p if ``given`` is empty.
        """
        if isinstance(given, Configurations):
            return given
        indices = np.array(list(given), dtype=np.int64)
        if like is not None and not len(indices):
            return like[:0]
        return cls(indices[:, None], np.empty((len(indices), 0)))

    @classmethod
    def join(cls, *parts: Configurations) -> Configurations:
        """Return all configurations of the parts, in their order."""
        return cls(
            np.concatenate([part.functions for part in parts]),
            np.concatenate([part.settings for part in parts]),
        )

    def distinct(self) -> Configurations:
        """Return each configuration once; single functions ascending, others in their order."""
        rows = np.concatenate([self.functions, self.settings], axis=1)
        first = np.unique(rows, axis=0, return_index=True)[1]
        return self[first if rows.shape[1] == 1 else np.sort(first)]

    def placed(self, embedding: Embedding) -> NDArray[np.bool_]:
        """Tell which configurations have all their functions in an embedding, (n,)."""
        return np.asarray(embedding.valid[self.functions].all(axis=1))

    def with_functions(self, k: int, functions: NDArray[np.int64]) -> Configurations:
        """Return the first configuration with m other functions as its k-th activation."""
        changed = self[np.zeros(len(functions), dtype=np.int64)]
        changed.functions[:, k] = functions
        return changed


class Taken:
    """Configurations that must not be proposed.

    Args:
        known: configurations that were tried or are under evaluation.
        closed: functions that were given up, with any settings.

    Attributes:
        functions: functions of all these configurations.
    """

    def __init__(self, known: Configurations, closed: Iterable[tuple[int, ...]]) -> None:
        self.closed = frozenset(closed)
        self.tried = frozenset(_keys(known))
        self.functions = self.closed | {functions for functions, _ in self.tried}
        self._indices = np.array([*{i for functions in self.functions for i in functions}])

    def count(self, besides: Collection[tuple[int, ...]]) -> int:
        """Count the configurations without some functions; a function given up counts once."""
        tried = [functions for functions, _ in self.tried]
        every = [*tried, *(self.closed - set(tried))]
        return sum(functions not in besides for functions in every)

    def among(self, configurations: Configurations) -> NDArray[np.bool_]:
        """Tell which of n configurations are taken, (n,)."""
        taken = np.zeros(len(configurations), dtype=bool)
        rows = np.flatnonzero(np.isin(configurations.functions, self._indices).all(axis=1))
        taken[rows] = [
            key in self.tried or key[0] in self.closed for key in _keys(configurations[rows])
        ]
        return taken


def _keys(configurations: Configurations) -> list[tuple[tuple[int, ...], bytes]]:
    functions = map(tuple, configurations.functions.tolist())
    return [
        (function, row.tobytes())
        for function, row in zip(functions, np.round(configurations.settings, 9), strict=True)
    ]


class Parameters:
    """The p coordinates of the parameters of a study.

    A number is one coordinate in [0, 1], logarithmic if its distribution is. A category is one-hot,
    with one coordinate per choice. All returned points are valid: integers and steps are rounded.

    Args:
        distributions: of Optuna, by name; those of a single value are left out.

    Attributes:
        width: p.
        blocks: columns of each parameter.

    Examples:
        >>> from optuna.distributions import FloatDistribution
        >>> parameters = Parameters({"rate": FloatDistribution(1e-4, 1.0, log=True)})
        >>> float(parameters.encode({"rate": 0.01}).round(6)[0])
        0.5
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
        """The number of points; infinite if a parameter is continuous."""
        return math.prod(_choices(distribution) for distribution in self.distributions.values())

    def encode(self, values: Mapping[str, Any]) -> Settings:
        """Return the point of values, (p,).

        Args:
            values: of all parameters, and possibly others; numbers are clipped to their range.

        Raises:
            ValueError: a category has no such choice.
        """
        if not self.width:
            return np.empty(0)
        point = self._transform.transform({name: values[name] for name in self.distributions})
        return np.asarray(np.clip(point, 0, 1) * self._scale)

    def decode(self, point: Settings) -> dict[str, Any]:
        """Return the values of a point (p,)."""
        return self._transform.untransform(point / self._scale) if self.width else {}

    def draw(self, count: int, generator: np.random.Generator) -> Settings:
        """Draw points spread evenly over the cube, (count, p)."""
        if not self.width:
            return np.empty((count, 0))
        sobol = qmc.Sobol(self.width, rng=generator)
        return self._allowed(sobol.random(2 ** math.ceil(math.log2(max(count, 1))))[:count])

    def near(self, point: Settings, count: int, generator: np.random.Generator) -> Settings:
        """Draw points around a point, (count, p), half of them very near."""
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


class ConfigurationSpace:
    """Maps configurations to points.

    Args:
        embedding: of the N functions, d columns.
        activations: K names.
        parameters: p coordinates.

    Attributes:
        blocks: columns of each activation's blocks and of each parameter.
    """

    def __init__(
        self, embedding: Embedding, activations: tuple[str, ...], parameters: Parameters
    ) -> None:
        self.embedding, self.parameters = embedding, parameters
        width = embedding.points.shape[1]
        self.blocks = {
            f"{name}.{block}" if name else block: slice(
                columns.start + k * width, columns.stop + k * width
            )
            for k, name in enumerate(activations)
            for block, columns in embedding.blocks.items()
        }
        start = len(activations) * width
        self.blocks |= {
            name: slice(start + columns.start, start + columns.stop)
            for name, columns in parameters.blocks.items()
        }

    def points(self, configurations: Configurations) -> Tensor:
        """Return the points of n configurations, (n, K d + p)."""
        parts = [self.embedding.points[column] for column in configurations.functions.T]
        if self.parameters.width:
            parts.append(configurations.settings)
        return torch.from_numpy(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1))

    def placed(self, configurations: Configurations) -> Tensor:
        """Return the points of the configurations in the embedding."""
        return self.points(configurations[configurations.placed(self.embedding)])


def _choices(distribution: BaseDistribution) -> float:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if not isinstance(distribution, IntDistribution | FloatDistribution) or not distribution.step:
        return math.inf
    return 1 + round((distribution.high - distribution.low) / distribution.step)
