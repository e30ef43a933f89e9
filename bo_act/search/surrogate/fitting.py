"""Fitting a Gaussian process: the hyperparameters of largest posterior density.

B  blocks of the embedding                      X  (n, d) observed points
n  observations                                 K  (n, n) their covariance with noise
d  dimensions of the embedding                  s  distance within a block / length scale

A search fits a model for each proposal. BoTorch's ``fit_gpytorch_mll`` spends most of the time in
general machinery. With distances computed once and an explicit gradient, the same likelihood is
maximized in a tenth of the time.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from typing import Any, cast

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.utils.constraints import LogTransformedInterval
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ConstantMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from linear_operator.utils.errors import NanError, NotPSDError
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform
from torch import Tensor
from torch.nn import Parameter

from bo_act.dependencies.torch_state import single_threaded
from bo_act.search.surrogate.kernel import CORRELATIONS, BlockKernel, exact
from bo_act.user_code.failures import one_line

Array = NDArray[np.float64]

# L-BFGS stops at this relative change of the objective. scipy's 2e-9 takes three times as many
# evaluations and gains about 0.01 of log likelihood per observation.
_FTOL = 1e-5
_FIRST_STAGE = 100  # observations; smaller fits have one stage
_ROOT5 = math.sqrt(5.0)


def fit(model: SingleTaskGP) -> str:
    """Fit a model's hyperparameters, starting from the current ones.

    Models with a default ``BlockKernel`` are fitted with an explicit gradient, others by
    ``fit_gpytorch_mll``.

    Args:
        model: of n observations.

    Returns:
        The reason if the model kept its hyperparameters, else ``""``.
    """
    if not is_written_out(model):
        return _fit_by_botorch(model)
    if not model.training:
        model.train()  # drops results for the previous hyperparameters
    failure = ""
    try:
        with single_threaded():
            vector = _numbers(_raw(model))
            for every in _steps(len(model.train_targets)):
                loss = Loss(model, every=every)
                minimum = minimize(
                    loss.at,
                    vector,
                    jac=True,
                    method="L-BFGS-B",
                    bounds=loss.bounds,
                    options={"ftol": _FTOL, "maxiter": 200},
                )
                if not np.isfinite(minimum.fun):
                    failure = "the likelihood is not finite"
                    break
                vector = minimum.x
    except NotPSDError as error:
        failure = str(error)
    if not failure:
        with torch.no_grad():
            for raw, number in zip(_raw(model), vector, strict=True):
                raw.fill_(number)
    model.eval()
    return failure


def _fit_by_botorch(model: SingleTaskGP) -> str:
    before = deepcopy(model.state_dict())
    failure = ""
    try:
        with single_threaded(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            torch.manual_seed(0)  # after a failure, BoTorch starts again from a draw of the priors
            warnings.simplefilter("ignore", BotorchWarning)
            fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    except (ModelFittingError, NanError, NotPSDError) as error:
        model.load_state_dict(before)
        failure = one_line(error)
    model.eval()
    return failure


def is_written_out(model: SingleTaskGP) -> bool:
    """Tell whether ``Loss`` supports a model's likelihood and priors."""
    kernel, likelihood, mean = model.covar_module, model.likelihood, model.mean_module
    if (type(kernel), type(mean)) != (BlockKernel, ConstantMean):
        return False
    if kernel.ard or kernel.correlation is not CORRELATIONS["matern_5_2"]:
        return False
    if type(likelihood) is not GaussianLikelihood and not _has_known_noise(likelihood):
        return False
    scales, terms, noise = _parts(model)
    positive = [(part, "lengthscale", LogNormalPrior) for part in scales]
    positive += [(part, "outputscale", GammaPrior) for part in terms]
    positive += [(noise, "noise", LogNormalPrior)]
    return (
        all(
            type(getattr(part, f"{name}_prior", None)) is prior
            and type(getattr(part, f"raw_{name}_constraint")) is LogTransformedInterval
            for part, name, prior in positive
        )
        and len(list(cast(Any, model).named_priors())) == len(positive)
        and all(parameter.requires_grad for parameter in _raw(model))
        and not hasattr(model, "input_transform")
        and model.train_targets.dtype == torch.float64
        and not model.batch_shape
    )


def _has_known_noise(likelihood: Any) -> bool:
    """Tell whether each observation has a known noise, and a common one is fitted."""
    fixed = type(likelihood) is FixedNoiseGaussianLikelihood
    return fixed and likelihood.second_noise_covar is not None


def _parts(model: SingleTaskGP) -> tuple[list[Any], list[Any], Any]:
    """Return the modules with the length scales, the variances and the noise."""
    kernel: BlockKernel = model.covar_module
    scales = [factor for factors in kernel.factors for factor in factors]
    likelihood: Any = model.likelihood
    known = _has_known_noise(likelihood)
    noise = likelihood.second_noise_covar if known else likelihood.noise_covar
    return scales, list(kernel.kernels), noise


def _raw(model: SingleTaskGP) -> list[Parameter]:
    """Return the fitted parameters, in the order of ``Loss``."""
    scales, terms, noise = _parts(model)
    raw = [part.raw_lengthscale for part in scales] + [part.raw_outputscale for part in terms]
    return [*raw, noise.raw_noise, model.mean_module.raw_constant]


def loss_closure(model: SingleTaskGP) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """Return the loss with an explicit gradient, for BoTorch's optimizers.

    Args:
        model: for which ``is_written_out`` holds.

    Returns:
        The same as ``botorch.optim.closures.get_loss_closure_with_grads``, for
        ``fit_gpytorch_mll(mll, closure=loss_closure(model))``.
    """
    loss, raw = Loss(model), _raw(model)
    position = {id(parameter): number for number, parameter in enumerate(raw)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def closure() -> tuple[Tensor, list[Tensor]]:
        value, gradient = loss.at(_numbers(raw))
        return exact(value), [p.new_full(p.shape, gradient[position[id(p)]]) for p in parameters]

    return closure


class Loss:
    """Negative log posterior density of hyperparameters per observation, with its gradient.

    The hyperparameters are a vector: the logarithms of the length scales in the blocks' terms, of
    those in the product, of the terms' variances, and of the noise; then the constant.

    Args:
        model: for which ``is_written_out`` holds.
        every: use every so many observations.
    """

    def __init__(self, model: SingleTaskGP, *, every: int = 1) -> None:
        kernel = model.covar_module
        x = model.train_inputs[0].numpy()[::every]
        self.y: Array = model.train_targets.numpy()[::every]
        self.distances = [pdist(x[:, columns]) for columns in kernel.pieces]
        known = _has_known_noise(model.likelihood)
        self.known: Array | float = (
            model.likelihood.noise_covar.noise.numpy()[::every] if known else 0.0
        )
        scales, terms, noise = _parts(model)
        normal = [part.lengthscale_prior for part in scales] + [noise.noise_prior]
        gamma = [part.outputscale_prior for part in terms]
        self.places = _numbers(prior.loc for prior in normal)
        self.spreads = _numbers(prior.scale for prior in normal)
        self.shapes = _numbers(prior.concentration for prior in gamma)
        self.rates = _numbers(prior.rate for prior in gamma)
        self.normalizer = sum(
            shape * math.log(rate) - math.lgamma(shape)
            for shape, rate in zip(self.shapes, self.rates, strict=True)
        )
        bounds = [part.raw_lengthscale_constraint for part in scales]
        bounds += [part.raw_outputscale_constraint for part in terms]
        bounds += [noise.raw_noise_constraint]
        self.bounds = [
            *((math.log(bound.lower_bound), math.log(bound.upper_bound)) for bound in bounds),
            (-math.inf, math.inf),
        ]

    def at(self, vector: Array) -> tuple[float, Array]:
        """Return the loss and its gradient.

        Raises:
            NotPSDError: the covariance is not positive definite.
        """
        value, gradient = self.log_posterior(vector)
        return -value / len(self.y), -gradient / len(self.y)

    def log_posterior(self, vector: Array) -> tuple[float, Array]:
        """Return the log marginal likelihood plus log priors, and the gradient."""
        blocks, n = len(self.distances), len(self.y)
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
        np.fill_diagonal(covariance, variances.sum() + noise + self.known)
        try:
            factor = torch.linalg.cholesky(torch.from_numpy(covariance))
        except RuntimeError as error:  # LinAlgError, missing in torch's type stubs
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
        """Return the log density of the priors and its gradient; see ``log_posterior``.

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
    """Return the Matérn-5/2 correlation, and its derivative by the log of the length scale."""
    root = _ROOT5 * scaled
    decay = np.exp(-root)
    square = root * root / 3
    return (1 + root + square) * decay, square * (1 + root) * decay


def _steps(n: int) -> list[int]:
    """Return the stages of a fit: each uses every so many observations, the last one all.

    The optimum over every second observation is near that over all, for an eighth of the time. The
    optimum over the first half is farther away, because a search explores elsewhere at first.
    """
    steps = [1]
    while n // steps[0] >= 2 * _FIRST_STAGE:
        steps.insert(0, 2 * steps[0])
    return steps
