"""Surrogates other than the Gaussian process: nearest neighbours and a random forest."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestRegressor
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import SurrogateSpec

# Least variance: acquisition functions divide by the deviation, and GPyTorch warns below this.
_LEAST = 1e-10


class RegressorModel(Surrogate):
    """A regressor of scikit-learn as a surrogate.

    ``knn`` predicts the mean of the nearest observations, without an uncertainty. ``forest``
    predicts the mean over its trees, with their variance as the uncertainty (Hutter et al. 2011,
    "Sequential model-based optimization for general algorithm configuration").

    Args:
        spec: the regressor.
        x: (n, d) float64 points in [0, 1].
        y: (n,) float64 warped targets.
        believed: (p, d) points without a value, treated as observed at their predicted mean.
        ceiling: (p,) upper bounds of their values.
        seed: of the forest.
    """

    def __init__(
        self,
        spec: SurrogateSpec,
        x: Tensor,
        y: Tensor,
        *,
        believed: Tensor,
        ceiling: Tensor,
        seed: int,
    ) -> None:
        super().__init__()
        self.spec, self.seed = spec, seed
        self._fit(x, y)
        if len(believed):
            value, _ = self.mean_and_variance(believed)
            self._fit(torch.cat([x, believed]), torch.cat([y, torch.minimum(value, ceiling)]))

    def _fit(self, x: Tensor, y: Tensor) -> None:
        if self.spec.name == "knn":
            self.regressor: Any = KNeighborsRegressor(min(self.spec.neighbours, len(x)))
        else:
            self.regressor = RandomForestRegressor(self.spec.trees, random_state=self.seed)
        self.regressor.fit(x.numpy(), y.numpy())

    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the value, (m,) each."""
        if self.spec.name == "knn":
            mean = self.regressor.predict(points.numpy())
            variance = np.zeros_like(mean)
        else:
            # Trees compare in float32: convert once, not in each tree.
            narrow = points.numpy().astype(np.float32)
            trees = np.stack([tree.predict(narrow) for tree in self.regressor.estimators_])
            mean, variance = trees.mean(axis=0), trees.var(axis=0)
        return torch.from_numpy(mean), torch.from_numpy(variance).clamp_min(_LEAST)
