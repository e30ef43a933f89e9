"""Surrogate: a model with predictions at single points, for BoTorch's acquisition functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor


class Surrogate(Model, ABC):
    """Base of all surrogates: mean and variance of one value at many points.

    Attributes:
        observed: (n, d) points with a value.
        pending: (p, d) points under evaluation, outside the model.
    """

    observed: Tensor
    pending: Tensor

    def botorch_model(self) -> Model:
        """Return the model for BoTorch's own functions: itself, unless it wraps another."""
        return self

    @property
    def num_outputs(self) -> int:
        """One value is modelled."""
        return 1

    @abstractmethod
    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the variance of the noiseless value, (m,) each.

        Args:
            points: (m, d).
        """

    def posterior(self, X: Tensor, *_: Any, **__: Any) -> GPyTorchPosterior:
        """Return the marginal posteriors at points (m, 1, d)."""
        mean, variance = self.mean_and_variance(X.squeeze(-2))
        normal = MultivariateNormal(mean.unsqueeze(-1), DiagLinearOperator(variance.unsqueeze(-1)))
        return GPyTorchPosterior(normal)
