"""Predictions of BoTorch's exact Gaussian processes at many single points.

n  observations                                 X  (n, d) their points
m  candidates                                   P  (m, d) their points
d  dimensions of the embedding                  K  (n, n) kernel matrix of X, with noise
                                                L  (n, n) its Cholesky factor
"""

from __future__ import annotations

from typing import TypeGuard

import torch
from botorch.models import SingleTaskGP
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.settings import lazily_evaluate_kernels
from linear_operator import to_dense
from linear_operator.operators import DiagLinearOperator
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

_LEAST = 1e-12  # variance; acquisition functions divide by the deviation
_LIKELIHOODS = (GaussianLikelihood, FixedNoiseGaussianLikelihood)
# A model that overrides one of these may have another posterior than GPyTorch's.
_PREDICTING = ("posterior", "forward", "__call__", "transform_inputs", "eval", "train")


class ExactPosterior:
    """Mean and variance of the noiseless value at single points, from one Cholesky factor.

    Equal to ``model.posterior``, but without its overhead per call, and without covariances between
    candidates. Valid until the model changes.

    Args:
        model: fitted, and ``is_exact``.
    """

    @torch.no_grad()
    def __init__(self, model: SingleTaskGP) -> None:
        self.model = model.eval()
        (self.x,), self.y = model.train_inputs, model.train_targets
        covariance = self._covariance(self.x, self.x).clone()
        covariance.diagonal().add_(model.likelihood.noise)
        self.factor: Tensor = psd_safe_cholesky(covariance)
        residual = (self.y - model.mean_module(self.x)).unsqueeze(-1)
        self.weights = torch.cholesky_solve(residual, self.factor)

    def _covariance(self, a: Tensor, b: Tensor) -> Tensor:
        with lazily_evaluate_kernels(False):
            covariance: Tensor = to_dense(self.model.covar_module(a, b))
        return covariance

    @torch.no_grad()
    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and variance of the noiseless value, (m,) each.

        Args:
            points: (m, d), not yet transformed by the model's input transform.
        """
        model = self.model
        inputs = model.transform_inputs(points)
        cross = self._covariance(self.x, inputs)
        mean = model.mean_module(inputs) + (cross.mT @ self.weights).squeeze(-1)
        half = torch.linalg.solve_triangular(self.factor, cross, upper=False)
        prior = model.covar_module(inputs, diag=True)
        variance = (prior - half.square().sum(dim=0)).clamp_min(_LEAST)
        transform = getattr(model, "outcome_transform", None)
        if transform is None:
            return mean, variance
        normal = MultivariateNormal(mean, DiagLinearOperator(variance))
        posterior = transform.untransform_posterior(GPyTorchPosterior(normal), X=inputs)
        return posterior.mean.squeeze(-1), posterior.variance.squeeze(-1)


def is_exact(model: Model) -> TypeGuard[SingleTaskGP]:
    """Tell whether ``ExactPosterior`` supports a model.

    It supports a ``SingleTaskGP`` of one value with any mean and kernel, Gaussian noise, an input
    transform from one point to one, a linear outcome transform, and GPyTorch's exact posterior.
    """
    if not isinstance(model, SingleTaskGP):
        return False
    kernel = model.covar_module
    while isinstance(kernel, ScaleKernel):  # its strategy is that of the scaled kernel
        kernel = kernel.base_kernel
    inputs, outcome = (getattr(model, f"{which}_transform", None) for which in ("input", "outcome"))
    return (
        all(
            getattr(getattr(model, name), "__func__", None) is getattr(SingleTaskGP, name)
            for name in _PREDICTING
        )
        and model.train_inputs is not None
        and model.num_outputs == 1
        and not model.batch_shape
        and type(model.likelihood) in _LIKELIHOODS
        and isinstance(kernel, Kernel)
        and type(kernel).prediction_strategy is Kernel.prediction_strategy
        and kernel.batch_shape == model.batch_shape
        and not getattr(inputs, "is_one_to_many", False)
        and (outcome is None or outcome._is_linear)
    )
