"""Fitting the Gaussian process: the kernel's hyperparameters, by maximum a posteriori.

B  blocks of the embedding                      X  (n, d) observed points
n  observations                                 K  (n, n) their covariance with noise
d  dimensions of the embedding                  s  distance within a block / length scale

A search fits anew for each proposal. With BoTorch's ``fit_gpytorch_mll`` most of that time went to
the general machinery, not to the numbers: with distances computed once and the gradient written
out, the same likelihood is maximized in a tenth of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform

from bo_act.torch_state import single_threaded

Array = NDArray[np.float64]

# Relative change of the objective at which L-BFGS stops. scipy's 2e-9 takes three times as many
# evaluations, for about 0.01 of log likelihood an observation.
_FTOL = 1e-5
LEAST_LENGTHSCALE = 0.025
"""Below which none is fitted, as in BoTorch's own default kernel."""
_LEAST_VARIANCE, _LEAST_NOISE = 1e-4, 1e-4
_MOST = math.log(1e4)  # of all that is fitted as a logarithm
_FIRST_STAGE = 100  # observations below which a fit is fast enough in one stage
_SCALE_SHAPE, _SCALE_RATE = 2.0, 3.0  # Gamma prior of each term's variance
_NOISE_PLACE, _NOISE_SPREAD = -4.0, 1.0  # log-normal prior of the noise variance, BoTorch's
_LENGTH_SPREAD = math.sqrt(3.0)
_ROOT5 = math.sqrt(5.0)


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """What is fitted.

    Attributes:
        own: (B,) length scale of each block's own term.
        joint: (B,) length scales of the product of all blocks; empty for a single block.
        variances: (B + 1,) prior variance of each block's term and of the product; (1,) for a
            single block.
        noise: variance of a measurement.
        constant: prior mean.
    """

    own: Array
    joint: Array
    variances: Array
    noise: float
    constant: float

    @classmethod
    def of_priors(cls, dimensions: Array) -> Hyperparameters:
        """Return where the priors have their mode (length scales, noise) or mean (variances).

        Args:
            dimensions: (B,) columns of each block.
        """
        scales = np.exp(_length_place(dimensions) - _LENGTH_SPREAD**2)
        terms = len(dimensions) + 1 if len(dimensions) > 1 else 1
        return cls(
            own=scales,
            joint=scales.copy() if terms > 1 else np.empty(0),
            variances=np.full(terms, _SCALE_SHAPE / _SCALE_RATE),
            noise=math.exp(_NOISE_PLACE - _NOISE_SPREAD**2),
            constant=0.0,
        )

    def pack(self) -> Array:
        """Return them as one vector, logarithms of all but the constant."""
        positive = [self.own, self.joint, self.variances, np.array([self.noise])]
        return np.append(np.log(np.concatenate(positive)), self.constant)

    @classmethod
    def unpack(cls, vector: Array, blocks: int) -> Hyperparameters:
        """Undo ``pack`` for an embedding of that many blocks."""
        positive, joint = np.exp(vector[:-1]), blocks if blocks > 1 else 0
        own, product, variances = np.split(positive[:-1], [blocks, blocks + joint])
        return cls(own, product, variances, float(positive[-1]), float(vector[-1]))


def _length_place(dimensions: Array) -> Array:
    """Location of the log-normal prior of Hvarfner et al. (2024), arXiv 2402.02229."""
    return np.asarray(math.sqrt(2.0) + 0.5 * np.log(dimensions))


def log_posterior(
    hyperparameters: Hyperparameters,
    distances: Array,
    y: Array,
    dimensions: Array,
) -> tuple[float, Array]:
    """Return log marginal likelihood plus log priors, and its gradient.

    The kernel is the sum of one Matérn-5/2 term a block and of their product: a block's own term
    lets it explain the value alone; the product lets functions be alike only where they are alike
    in every block.

    Args:
        hyperparameters: where.
        distances: (B, n (n - 1) / 2) of each pair of observations in each block, as ``pdist``.
        y: (n,) warped targets.
        dimensions: (B,) columns of each block.

    Returns:
        The value, and its gradient by ``hyperparameters.pack()``.

    Raises:
        torch.linalg.LinAlgError: the covariance is not positive definite.
    """
    h, n, blocks = hyperparameters, len(y), len(dimensions)
    own = [_matern_and_slope(distances[b] / h.own[b]) for b in range(blocks)]
    joint = [_matern_and_slope(distances[b] / s) for b, s in enumerate(h.joint)]
    terms = [matern for matern, _ in own]
    if joint:
        terms.append(_product([matern for matern, _ in joint]))
    pairs = sum(a * term for a, term in zip(h.variances, terms, strict=True))
    covariance = squareform(pairs, checks=False)
    np.fill_diagonal(covariance, h.variances.sum() + h.noise)
    factor = torch.linalg.cholesky(torch.from_numpy(covariance))
    inverse = torch.cholesky_inverse(factor).numpy()
    residual = y - h.constant
    weights = inverse @ residual
    value = -0.5 * residual @ weights - np.log(factor.diagonal().numpy()).sum()
    value -= 0.5 * n * math.log(2 * math.pi)
    # d value = 1/2 tr((w w' - K^-1) dK)
    diagonal = 0.5 * (weights**2 - inverse.diagonal()).sum()
    pull = squareform(np.outer(weights, weights) - inverse, checks=False)
    gradient = [a * (pull @ slope) for a, (_, slope) in zip(h.variances, own, strict=False)]
    for b, (_, slope) in enumerate(joint):
        others = _product([matern for c, (matern, _) in enumerate(joint) if c != b])
        gradient.append(h.variances[-1] * (pull @ (slope * others)))
    gradient += [a * (pull @ term + diagonal) for a, term in zip(h.variances, terms, strict=True)]
    gradient += [h.noise * diagonal, weights.sum()]
    prior, prior_gradient = _log_prior(h, dimensions)
    return float(value + prior), np.array(gradient) + prior_gradient


def _product(factors: Sequence[Array]) -> Array:
    return math.prod(factors[1:], start=factors[0])


def _matern_and_slope(scaled: Array) -> tuple[Array, Array]:
    """Return the Matérn-5/2 correlation at s, and its derivative by the log of the length scale."""
    root = _ROOT5 * scaled
    decay = np.exp(-root)
    square = root * root / 3
    return (1 + root + square) * decay, square * (1 + root) * decay


def _log_prior(h: Hyperparameters, dimensions: Array) -> tuple[float, Array]:
    """Return the log density of the priors and its gradient by the packed vector."""
    places = _length_place(dimensions)
    places = np.append(np.concatenate([places, places[: len(h.joint)]]), _NOISE_PLACE)
    spreads = np.append(np.full(len(places) - 1, _LENGTH_SPREAD), _NOISE_SPREAD)
    logs = np.log(np.concatenate([h.own, h.joint, [h.noise]]))
    away = (logs - places) / spreads
    value = -(logs + np.log(spreads) + 0.5 * math.log(2 * math.pi) + 0.5 * away**2).sum()
    normal = -1 - away / spreads
    value += ((_SCALE_SHAPE - 1) * np.log(h.variances) - _SCALE_RATE * h.variances).sum()
    value += len(h.variances) * (_SCALE_SHAPE * math.log(_SCALE_RATE) - math.lgamma(_SCALE_SHAPE))
    gamma = (_SCALE_SHAPE - 1) - _SCALE_RATE * h.variances
    return float(value), np.concatenate([normal[:-1], gamma, normal[-1:], [0.0]])


def fit_hyperparameters(
    x: Array, y: Array, blocks: Mapping[str, slice], *, least_noise: float = 0.0
) -> tuple[Hyperparameters, str]:
    """Find the maximum of marginal likelihood and priors by L-BFGS, from the priors.

    Args:
        x: (n, d) points in [0, 1].
        y: (n,) warped targets.
        blocks: columns of each feature block.
        least_noise: variance of a measurement that is known to be there; more is fitted where the
            model misses more.

    Returns:
        The hyperparameters and ``""``. Where the optimization fails, those of the priors and the
        reason.
    """
    pieces = blocks.values()
    dimensions = np.array([b.stop - b.start for b in pieces], dtype=np.float64)
    start = Hyperparameters.of_priors(dimensions)
    least_noise = min(max(least_noise, _LEAST_NOISE), math.exp(_MOST))
    start = replace(start, noise=max(start.noise, least_noise))
    least = [math.log(LEAST_LENGTHSCALE)] * (len(start.own) + len(start.joint))
    least += [math.log(_LEAST_VARIANCE)] * len(start.variances) + [math.log(least_noise)]
    bounds = [(low, _MOST) for low in least] + [(-math.inf, math.inf)]
    found = start
    try:
        with single_threaded():
            for step in _steps(len(y)):
                some = y[::step]
                distances = np.stack([pdist(x[::step, columns]) for columns in pieces])

                def objective(vector: Array) -> tuple[float, Array]:
                    at = Hyperparameters.unpack(vector, len(dimensions))
                    value, gradient = log_posterior(at, distances, some, dimensions)  # noqa: B023
                    return -value / len(some), -gradient / len(some)  # noqa: B023

                result = minimize(
                    objective,
                    found.pack(),
                    jac=True,
                    method="L-BFGS-B",
                    bounds=bounds,
                    options={"ftol": _FTOL, "maxiter": 200},
                )
                if not np.isfinite(result.fun):
                    return start, "the likelihood is not finite"
                found = Hyperparameters.unpack(result.x, len(dimensions))
    except RuntimeError as error:  # torch's LinAlgError, which its type stubs do not export
        return start, str(error)
    return found, ""


def _steps(n: int) -> list[int]:
    """Return which observations each stage of a fit looks at, every so many, ending with all.

    The optimum for every other one is near that for all and costs an eighth. That for the first
    half is farther away, because a search looks elsewhere at first.
    """
    steps = [1]
    while n // steps[0] >= 2 * _FIRST_STAGE:
        steps.insert(0, 2 * steps[0])
    return steps
