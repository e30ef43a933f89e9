"""Acquisition functions over a pool of candidates."""

from __future__ import annotations

import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import (
    LogExpectedImprovement,
    PosteriorMean,
    UpperConfidenceBound,
)
from torch import Tensor

from bo_act.search.pointwise import PointwiseModel
from bo_act.specs import AcquisitionSpec

# Candidates scored at once. 500 observations by 2,048 candidates in float64 are 8 MB, which the
# processor's cache may hold: 16,384 took a third more time.
_CHUNK = 2_048


def make_acquisition(
    spec: AcquisitionSpec, model: PointwiseModel, best: float
) -> AcquisitionFunction:
    """Return the BoTorch acquisition function that a spec names.

    Args:
        spec: which one, with its options.
        model: the surrogate.
        best: the largest warped target observed.
    """
    if spec.name == "ucb":
        # BoTorch's beta multiplies the variance.
        return UpperConfidenceBound(model, beta=spec.beta**2)
    if spec.name == "greedy":
        return PosteriorMean(model)
    return LogExpectedImprovement(model, best_f=best)


def score_pool(acquisition: AcquisitionFunction, points: Tensor) -> Tensor:
    """Return the acquisition value of each candidate, (m,).

    Args:
        acquisition: takes (chunk, 1, d).
        points: (m, d) float64.
    """
    with torch.no_grad():
        return torch.cat([acquisition(chunk.unsqueeze(1)) for chunk in points.split(_CHUNK)])
