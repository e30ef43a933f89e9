"""Surrogates of all outcomes of a trial: its objectives and constraints.

n  observations                                 M  objectives
d  dimensions of the embedding                  C  constraints
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from botorch.models.gpytorch import GPyTorchModel
from botorch.models.model import Model, ModelList
from botorch.models.model_list_gp_regression import ModelListGP
from numpy.typing import NDArray
from torch import Tensor

from bo_act.search.observations import satisfied
from bo_act.search.surrogate.factory import fit_points
from bo_act.search.surrogate.own import AnySurrogate, OwnSurrogate
from bo_act.search.surrogate.surrogate import Surrogate

_FEWEST = 2  # values of a constraint that a surrogate needs


@dataclass(frozen=True, eq=False)
class Outcomes:
    """One surrogate per objective and per constraint, over the same points.

    Attributes:
        objectives: M surrogates.
        targets: (n, M) warped values, larger is better.
        constraints: C surrogates of warped values, larger is better.
        limits: C warped values; a constraint is satisfied from its limit on.
        feasible: (n,) observations that are known to satisfy all constraints.
    """

    objectives: tuple[Surrogate, ...]
    targets: Tensor
    constraints: tuple[Surrogate, ...]
    limits: tuple[float, ...]
    feasible: Tensor

    @property
    def models(self) -> tuple[Surrogate, ...]:
        """All surrogates, those of the objectives first."""
        return (*self.objectives, *self.constraints)

    @property
    def observed(self) -> Tensor:
        """Points with known objectives, (n, d)."""
        return self.objectives[0].observed

    @property
    def pending(self) -> Tensor:
        """Points under evaluation, outside the models, (p, d)."""
        return self.objectives[0].pending

    def log_feasibility(self, points: Tensor) -> Tensor:
        """Return the log probability that a point satisfies all constraints, (m,)."""
        total = points.new_zeros(len(points))
        for model, limit in zip(self.constraints, self.limits, strict=True):
            mean, variance = model.mean_and_variance(points)
            total = total + torch.special.log_ndtr((mean - limit) / variance.sqrt())
        return total

    def botorch_model(self) -> Model:
        """Return the surrogates as one BoTorch model with M + C outputs."""
        models = [model.botorch_model() for model in self.models]
        if all(isinstance(model, GPyTorchModel) for model in models):
            return ModelListGP(*cast("list[GPyTorchModel]", models))
        return ModelList(*models)


def fit_outcomes(
    spec: AnySurrogate,
    x: Tensor,
    first: tuple[Surrogate, Tensor],
    blocks: Mapping[str, slice],
    *,
    others: NDArray[np.float64],
    constraints: NDArray[np.float64],
    pending: Tensor,
    pruned: Tensor,
    believe: bool,
    seed: int,
) -> Outcomes:
    """Fit surrogates to the further objectives and the constraints.

    Args:
        spec: of each surrogate.
        x: (n, d) float64 points in [0, 1].
        first: surrogate and warped targets (n,) of the first objective.
        blocks: columns of each feature block.
        others: (n, M - 1) values of the further objectives, larger is better.
        constraints: (n, C) values, at most 0 where satisfied, NaN where unknown.
        pending: (p, d) points under evaluation.
        pruned: (r, d) points that were stopped early; not used for constraints.
        believe: as in ``fit_points``.
        seed: as in ``fit_points``.
    """
    spec = _with(spec, noise=None)  # it is in units of one objective
    models, targets = [first[0]], [first[1]]
    for values in others.T:
        model, y, _ = fit_points(
            spec, x, values, blocks, pending=pending, pruned=pruned, believe=believe, seed=seed
        )
        models.append(model)
        targets.append(y)
    spec, of_constraints, limits = _with(spec, targets="standardized"), [], []
    for values in constraints.T:
        known = np.isfinite(values)
        if known.sum() < _FEWEST:
            continue
        warped, limit = warp_constraint(values[known])
        of, _, _ = fit_points(
            spec, x[known], warped, blocks, pending=pending, believe=believe, seed=seed
        )
        of_constraints.append(of)
        limits.append(limit)
    return Outcomes(
        tuple(models),
        torch.stack(targets, dim=1),
        tuple(of_constraints),
        tuple(limits),
        torch.from_numpy(
            satisfied(constraints) if constraints.shape[1] else np.ones(len(x), dtype=bool)
        ),
    )


def warp_constraint(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Warp the values of a constraint for a Gaussian process.

    The bilog transformation of Eriksson and Poloczek (2021, "Scalable constrained Bayesian
    optimization") in units of the median distance from 0, then standardization. It keeps the sign,
    magnifies values near 0 and compresses large ones.

    Args:
        values: (n,) finite, at most 0 if the constraint is satisfied.

    Returns:
        (n,) warped values, larger is better, and the warped 0.
    """
    away = np.abs(values)
    scale = float(np.median(away[away > 0])) if away.any() else 1.0
    warped = -np.sign(values) * np.log1p(away / scale)
    middle, spread = float(warped.mean()), float(warped.std()) or 1.0
    return (warped - middle) / spread, -middle / spread


def _with(spec: AnySurrogate, **changes: object) -> AnySurrogate:
    if isinstance(spec, OwnSurrogate):
        return replace(spec, **changes)  # type: ignore[arg-type]
    return spec.model_copy(update=changes)
