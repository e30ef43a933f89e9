"""Fitting a Gaussian process: the hyperparameters of largest posterior density.

B  blocks of the embedding                      X  (n, d) observed points
n  observations                                 K  (n, n) their covariance with noise
d  dimensions of the embedding                  s  distance within a block / length scale

A search fits anew for each proposal. With BoTorch's ``fit_gpytorch_mll`` most of that time went to
the general machinery, not to the numbers: with distances computed once and the gradient written
out, the same likelihood is maximized in a tenth of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim.core import scipy_minimize
from botorch.optim.utils import get_parameters_and_bounds
from botorch.utils.constraints import LogTransformedInterval
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from linear_operator.utils.errors import NotPSDError
from numpy.typing import NDArray
from scipy.spatial.distance import pdist, squareform
from torch import Tensor

from bo_act.search.surrogate.kernel import BlockKernel
from bo_act.torch_state import single_threaded

Array = NDArray[np.float64]

# Relative change of the objective at which L-BFGS stops. scipy's 2e-9 takes three times as many
# evaluations, for about 0.01 of log likelihood an observation.
_FTOL = 1e-5
_FIRST_STAGE = 100  # observations below which a fit is fast enough in one stage
_ROOT5 = math.sqrt(5.0)


def fit(model: SingleTaskGP) -> str:
    """Fit a model's hyperparameters, from those that it has.

    Models of a ``BlockKernel`` are fitted with the gradient written out, others by
    ``fit_gpytorch_mll``.

    Args:
        model: to n observations.

    Returns:
        ``""``, or the reason for which a model of a ``BlockKernel`` kept what it had.
    """
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    if not is_written_out(model):
        fit_gpytorch_mll(mll)
        return ""
    parameters, bounds = get_parameters_and_bounds(mll, requires_grad=True)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    failure = ""
    try:
        with single_threaded():
            for every in _steps(len(model.train_targets)):
                found = scipy_minimize(
                    Loss(model.train(), parameters, every=every),
                    parameters,
                    bounds,
                    options={"ftol": _FTOL, "maxiter": 200},
                )
                if not np.isfinite(found.fval):
                    failure = "the likelihood is not finite"
                    break
    except NotPSDError as error:
        failure = str(error)
    if failure:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
    model.eval()
    return failure


def is_written_out(model: SingleTaskGP) -> bool:
    """Say whether ``Loss`` knows a model's likelihood and priors."""
    kernel, likelihood = model.covar_module, model.likelihood
    if type(kernel) is not BlockKernel or type(likelihood) is not GaussianLikelihood:
        return False
    factors = [factor for factors in kernel.factors for factor in factors]
    noise = likelihood.noise_covar
    positive = [(f, "lengthscale", LogNormalPrior) for f in factors]
    positive += [(term, "outputscale", GammaPrior) for term in kernel.kernels]
    positive += [(noise, "noise", LogNormalPrior)]
    return (
        type(model.mean_module) is ConstantMean
        and not hasattr(model, "input_transform")
        and model.train_targets.dtype == torch.float64
        and not model.batch_shape
        and len(list(model.named_priors())) == len(positive)
        and all(
            type(getattr(part, f"{name}_prior", None)) is prior
            and type(getattr(part, f"raw_{name}_constraint")) is LogTransformedInterval
            for part, name, prior in positive
        )
    )


class Loss:
    """Minus the log posterior density of a model's hyperparameters, an observation, with gradient.

    A closure for BoTorch's optimizers, as ``get_loss_closure_with_grads`` makes by automatic
    differentiation: of the log marginal likelihood plus the log priors' densities.

    Args:
        model: for which ``is_written_out`` holds, in training mode.
        parameters: of which gradients are returned, by names.
        every: which observations are looked at, every so many.
    """

    def __init__(
        self, model: SingleTaskGP, parameters: Mapping[str, Tensor], *, every: int = 1
    ) -> None:
        kernel: BlockKernel = model.covar_module
        noise = model.likelihood.noise_covar
        x = model.train_inputs[0].numpy()[::every]
        self.y: Array = model.train_targets.numpy()[::every]
        self.distances = [pdist(x[:, columns]) for columns in kernel.pieces]
        self.blocks = len(self.distances)
        factors = [factor for factors in kernel.factors for factor in factors]
        raw = [factor.raw_lengthscale for factor in factors]
        raw += [term.raw_outputscale for term in kernel.kernels]
        self.raw = [*raw, noise.raw_noise, model.mean_module.raw_constant]
        normal = [factor.lengthscale_prior for factor in factors] + [noise.noise_prior]
        self.places, self.spreads = (
            _numbers(p.loc for p in normal),
            _numbers(p.scale for p in normal),
        )
        gamma = [term.outputscale_prior for term in kernel.kernels]
        self.shapes = _numbers(p.concentration for p in gamma)
        self.rates = _numbers(p.rate for p in gamma)
        self.normalizer = sum(
            shape * math.log(rate) - math.lgamma(shape)
            for shape, rate in zip(self.shapes, self.rates, strict=True)
        )
        place = {id(parameter): number for number, parameter in enumerate(self.raw)}
        self.order = [place[id(parameter)] for parameter in parameters.values()]
        self.sizes = [parameter.shape for parameter in parameters.values()]

    def __call__(self) -> tuple[Tensor, list[Tensor]]:
        """Return the loss where the model's hyperparameters are, and its gradient by each.

        Raises:
            NotPSDError: the covariance is not positive definite.
        """
        value, gradient = self.log_posterior(_numbers(self.raw))
        count = len(self.y)
        slopes = torch.from_numpy(gradient[self.order]).div_(-count)
        gradients = [s.reshape(size) for s, size in zip(slopes, self.sizes, strict=True)]
        return torch.tensor(-value / count, device="cpu", dtype=torch.float64), gradients

    def log_posterior(self, vector: Array) -> tuple[float, Array]:
        """Return log marginal likelihood plus log priors, and its gradient.

        Args:
            vector: logarithms of each block's length scale in its own term, of those in the
                product, of the terms' variances and of the noise, and the constant.
        """
        blocks, n = self.blocks, len(self.y)
        positive, constant = np.exp(vector[:-1]), vector[-1]
        count = 2 * blocks if blocks > 1 else 1
        scales, variances, noise = positive[:count], positive[count:-1], positive[-1]
        own = [_matern_and_slope(s / h) for s, h in zip(self.distances, scales, strict=False)]
        joint = [
            _matern_and_slope(s / h) for s, h in zip(self.distances, scales[blocks:], strict=False)
        ]
        terms = [matern for matern, _ in own]
        if joint:
            terms.append(_product([matern for matern, _ in joint]))
        pairs = sum(a * term for a, term in zip(variances, terms, strict=True))
        covariance = squareform(pairs, checks=False)
        np.fill_diagonal(covariance, variances.sum() + noise)
        try:
            factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        except RuntimeError as error:  # torch's LinAlgError, which its type stubs do not export
            raise NotPSDError(str(error)) from error
        inverse = torch.cholesky_inverse(factor).numpy()
        residual = self.y - constant
        weights = inverse @ residual
        value = -0.5 * residual @ weights - np.log(factor.diagonal().numpy()).sum()
        value -= 0.5 * n * math.log(2 * math.pi)
        # d value = 1/2 tr((w w' - K^-1) dK)
        diagonal = 0.5 * (weights**2 - inverse.diagonal()).sum()
        pull = squareform(np.outer(weights, weights) - inverse, checks=False)
        gradient = [a * (pull @ slope) for a, (_, slope) in zip(variances, own, strict=False)]
        for b, (_, slope) in enumerate(joint):
            others = _product([matern for c, (matern, _) in enumerate(joint) if c != b])
            gradient.append(variances[-1] * (pull @ (slope * others)))
        gradient += [a * (pull @ term + diagonal) for a, term in zip(variances, terms, strict=True)]
        gradient += [noise * diagonal, weights.sum()]
        logs = np.append(vector[:count], vector[-2])
        prior, prior_gradient = self._log_prior(logs, variances)
        return float(value + prior), np.array(gradient) + prior_gradient

    def _log_prior(self, logs: Array, variances: Array) -> tuple[float, Array]:
        """Return the log density of the priors and its gradient, as ``log_posterior``.

        Args:
            logs: logarithms of length scales and noise.
            variances: of the terms.
        """
        away = (logs - self.places) / self.spreads
        value = -(logs + np.log(self.spreads) + 0.5 * math.log(2 * math.pi) + 0.5 * away**2).sum()
        normal = -1 - away / self.spreads
        value += ((self.shapes - 1) * np.log(variances) - self.rates * variances).sum()
        value += self.normalizer
        gamma = (self.shapes - 1) - self.rates * variances
        return float(value), np.concatenate([normal[:-1], gamma, normal[-1:], [0.0]])


def _numbers(tensors: Iterable[Tensor]) -> Array:
    return np.array([tensor.item() for tensor in tensors])


def _product(factors: Sequence[Array]) -> Array:
    return math.prod(factors[1:], start=factors[0])


def _matern_and_slope(scaled: Array) -> tuple[Array, Array]:
    """Return the Matérn-5/2 correlation at s, and its derivative by the log of the length scale."""
    root = _ROOT5 * scaled
    decay = np.exp(-root)
    square = root * root / 3
    return (1 + root + square) * decay, square * (1 + root) * decay


def _steps(n: int) -> list[int]:
    """Return which observations each stage of a fit looks at, every so many, ending with all.

    The optimum for every other one is near that for all and costs an eighth. That for the first
    half is farther away, because a search looks elsewhere at first.
    """
    steps = [1]
    while n // steps[0] >= 2 * _FIRST_STAGE:
        steps.insert(0, 2 * steps[0])
    return steps
