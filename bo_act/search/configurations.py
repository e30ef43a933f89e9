"""Configurations: functions for several places and other parameters, and the points that they are.

K  activations of a configuration            p  coordinates of the other parameters
n  configurations                            N  functions of the catalogue
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.parameters import Parameters, Settings


@dataclass(frozen=True, eq=False)
class Configurations:
    """n configurations.

    Attributes:
        functions: (n, K) indices in the catalogue.
        settings: (n, p) coordinates of the parameters.
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
    def join(cls, *parts: Configurations) -> Configurations:
        """Return all configurations of the parts, in their order."""
        return cls(
            np.concatenate([part.functions for part in parts]),
            np.concatenate([part.settings for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class JointProposal:
    """One configuration and how it came about; see ``Proposal``.

    Attributes:
        functions: K indices.
        settings: (p,).
        by, mean, deviation, expected, note: as there.
        score: of the acquisition function, where it chose.
    """

    functions: tuple[int, ...]
    settings: Settings
    by: str
    mean: float | None = None
    deviation: float | None = None
    expected: float | None = None
    note: str = ""
    score: float | None = None


class ConfigurationSpace:
    """Points of configurations.

    Args:
        embedding: of the N functions, d columns.
        activations: K names.
        parameters: p coordinates.

    Attributes:
        blocks: columns of each block of each activation, and of each parameter.
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

    def placed(self, some: Configurations) -> Configurations:
        """Return those whose functions all have a place in the embedding."""
        return some[self.embedding.valid[some.functions].all(axis=1)]

    def points(self, some: Configurations) -> Tensor:
        """Return the points of n configurations, (n, K d + p)."""
        embedded = np.concatenate(
            [self.embedding.points[column] for column in some.functions.T], axis=1
        )
        return torch.from_numpy(np.concatenate([embedded, some.settings], axis=1))
