"""Acquisition functions over a pool of candidates.

BoTorch's acquisition functions see the pool through ``PoolMarginals``, which computes the posterior
of each candidate only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from botorch.acquisition.acquisition import AcquisitionFunction
from botorch.acquisition.analytic import (
    LogExpectedImprovement,
    LogProbabilityOfImprovement,
    PosteriorMean,
    UpperConfidenceBound,
)
from botorch.acquisition.logei import qLogNoisyExpectedImprovement
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy
from botorch.acquisition.objective import PosteriorTransform
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.models.model import Model
from botorch.posteriors.gpytorch import GPyTorchPosterior
from botorch.utils.sampling import manual_seed
from gpytorch.distributions import MultivariateNormal
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from bo_act.errors import SearchError
from bo_act.search.acquisition.own import AnyAcquisition, OwnAcquisition, own_scorer
from bo_act.search.surrogate.gaussian_process import GaussianProcess
from bo_act.search.surrogate.own import BoTorchSurrogate
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import AcquisitionSpec

# Candidates scored at once: 500 observations by 512 candidates in float64 are 2 MB, which fit into
# the processor's cache. With 2,048, the allocator kept returning memory to the system and taking it
# again, for up to twice the time.
_CHUNK = 512
# From this size on, pools are scored in two steps, the second for the most promising candidates.
SCREENED = 20_000
_PROMISING = 16_384
_GROWING = ("ucb", "log_ei")  # grow with mean and deviation: upper bounds bound the score
_DRAWING = ("thompson", "log_nei")
_KNOWN = 1_024  # candidates that knowledge gradient measures, and whose means it then compares
_INCUMBENTS = 64  # observed points whose means it compares, too
_NODES = 32  # of Gauss-Hermite quadrature
_MAXIMA = 32  # samples of the pool's maximum, for max-value entropy
_DRAWS = 64  # of the values at the observed points, for noisy expected improvement


def _noisy(model: Model, X_baseline: Tensor, X_pending: Tensor | None) -> AcquisitionFunction:
    return qLogNoisyExpectedImprovement(
        model, X_baseline, X_pending=X_pending, prune_baseline=False, cache_root=False
    )


# Acquisition functions for BoTorch's own models.
_JOINTLY: dict[str, Callable[..., AcquisitionFunction]] = {
    "thompson": PathwiseThompsonSampling,
    "log_nei": _noisy,
}


class PoolMarginals(Model):
    """The marginal posteriors of m candidates, addressed by number.

    Args:
        mean, variance: (m,) of the noiseless value.
        noise: variance of a measurement.
    """

    def __init__(self, mean: Tensor, variance: Tensor, noise: float = 0.0) -> None:
        super().__init__()
        self.mean, self.variance, self.noise = mean, variance, noise
        self.numbers = torch.arange(len(mean), device="cpu", dtype=mean.dtype).unsqueeze(-1)

    @property
    def num_outputs(self) -> int:
        """One value is modelled."""
        return 1

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,  # noqa: ARG002
        observation_noise: bool | Tensor = False,
        posterior_transform: PosteriorTransform | None = None,  # noqa: ARG002
    ) -> GPyTorchPosterior:
        """Return the marginal posteriors of candidates with numbers (..., q, 1)."""
        chosen = X.squeeze(-1).long()
        variance = self.variance[chosen] + (self.noise if observation_noise else 0.0)
        return GPyTorchPosterior(
            MultivariateNormal(self.mean[chosen], DiagLinearOperator(variance))
        )


class Scoring(Protocol):
    """Scores of candidates that are not listed in advance."""

    def scorer(self, pool: Tensor, *, seed: int) -> Callable[[Tensor], Tensor]:
        """Return the acquisition function, points (m, d) → scores (m,); see ``make_scorer``."""
        ...

    def promising(self, points: Tensor, count: int) -> Tensor:
        """Return the numbers of the most promising points, (count,)."""
        ...


@dataclass(frozen=True, eq=False)
class ScoringValue:
    """Scores of candidates by one value.

    Attributes:
        spec: the acquisition function.
        model: the surrogate.
        best: the largest warped target observed.
    """

    spec: AnyAcquisition
    model: Surrogate
    best: float

    def scorer(self, pool: Tensor, *, seed: int) -> Callable[[Tensor], Tensor]:
        """Return the acquisition function; see ``make_scorer``."""
        return make_scorer(self.spec, self.model, self.best, pool=pool, seed=seed)

    def promising(self, points: Tensor, count: int) -> Tensor:
        """Return the numbers of the most promising points; see ``promising``."""
        return promising(self.model, points, count)


def make_acquisition(
    spec: AcquisitionSpec, pool: PoolMarginals, best: float, *, seed: int = 0
) -> AcquisitionFunction:
    """Return the BoTorch acquisition function of a spec, for candidates by number.

    Args:
        spec: a function of marginals, with its options.
        pool: the candidates.
        best: the largest warped target observed.
        seed: of sampled maxima.
    """
    if spec.name == "ucb":
        # BoTorch's beta multiplies the variance.
        return UpperConfidenceBound(pool, beta=spec.beta**2)
    if spec.name == "greedy":
        return PosteriorMean(pool)
    if spec.name == "log_pi":
        return LogProbabilityOfImprovement(pool, best_f=best)
    if spec.name == "max_value_entropy":
        with manual_seed(seed), torch.no_grad():
            return qLowerBoundMaxValueEntropy(pool, pool.numbers, num_mv_samples=_MAXIMA)
    return LogExpectedImprovement(pool, best_f=best)


def score_pool(
    spec: AnyAcquisition,
    model: Surrogate,
    points: Tensor,
    best: float,
    *,
    seed: int = 0,
) -> Tensor:
    """Return the acquisition value of each candidate, (m,).

    In a pool of more than 20,000, candidates that cannot be the best get minus infinity. Functions
    that need more than mean and deviation of each candidate score only the 16,384 most promising
    ones by an upper bound; knowledge gradient 1,024.

    Args:
        spec: the acquisition function.
        model: the surrogate.
        points: (m, d) float64.
        best: the largest warped target observed.
        seed: of random draws.

    Raises:
        SearchError: the acquisition function needs a Gaussian process, and the surrogate is none.
    """
    if isinstance(spec, OwnAcquisition):
        return own_scorer(spec, model, best, candidates=points, seed=seed)(points)
    _check_surrogate(spec, model)
    with torch.no_grad():
        if isinstance(model, GaussianProcess) and spec.name == "knowledge_gradient":
            return _knowledge_gradient(model, points)
        if isinstance(model, GaussianProcess) and len(points) >= SCREENED:
            # The bound does not include the division by seconds.
            if spec.name in _GROWING and not spec.per_second:
                return _score_screened(_by_marginals(spec, model, best, seed), model, points)
            return _score_promising(spec, model, points, best, seed)
        return _score_all(spec, model, points, best, seed)


def _check_surrogate(spec: AnyAcquisition, model: Surrogate) -> None:
    together = (*_DRAWING, "knowledge_gradient")
    can = isinstance(model, GaussianProcess) or (
        isinstance(model, BoTorchSurrogate) and spec.name in _JOINTLY
    )
    if spec.name in together and not can:
        raise SearchError(
            f"the acquisition function {spec.name!r} needs a joint posterior; choose the "
            "surrogate 'gp', or another acquisition"
        )


def check_unlisted(spec: AnyAcquisition) -> None:
    """Refuse an acquisition function that needs a list of all candidates.

    Raises:
        SearchError: it compares all candidates with each other.
    """
    if spec.needs_list:
        raise SearchError(
            f"the acquisition function {spec.name!r}{' per second' if spec.per_second else ''}"
            f"{' with repeat' if spec.repeats else ''} "
            "needs a list of all candidates, so it works neither with other parameters or several "
            "activations nor in an unenumerated space; choose another acquisition, such as log_ei"
        )


def make_scorer(
    spec: AnyAcquisition,
    model: Surrogate,
    best: float,
    *,
    pool: Tensor,
    seed: int = 0,
) -> Callable[[Tensor], Tensor]:
    """Return the acquisition function for points that are not listed in advance.

    Random draws are made only once, so scores of different calls are comparable.

    Args:
        spec: the acquisition function.
        model: the surrogate.
        best: the largest warped target observed.
        pool: (r, d) points that represent all; sampled maxima are over them.
        seed: of random draws.

    Returns:
        A function from points (m, d) to scores (m,).

    Raises:
        SearchError: as ``score_pool``.
    """
    if isinstance(spec, OwnAcquisition):
        return own_scorer(spec, model, best, candidates=pool, seed=seed)
    _check_surrogate(spec, model)
    check_unlisted(spec)
    if isinstance(model, BoTorchSurrogate) and spec.name in _JOINTLY:
        named = OwnAcquisition(_JOINTLY[spec.name], spec.name)
        return own_scorer(named, model, best, candidates=pool, seed=seed)
    if isinstance(model, GaussianProcess) and spec.name in _DRAWING:
        generator = torch.Generator().manual_seed(seed)
        draw = _path if spec.name == "thompson" else _noisy_improvement
        return by_chunks(draw(model, generator))
    acquisition = make_acquisition(spec, marginals(model, pool), best, seed=seed)

    def score(points: Tensor) -> Tensor:
        acquisition.model = candidates = marginals(model, points)
        scores: Tensor = acquisition(candidates.numbers.unsqueeze(1))
        return scores

    return by_chunks(score)


def _score_all(
    spec: AcquisitionSpec, model: Surrogate, points: Tensor, best: float, seed: int
) -> Tensor:
    if spec.name in _DRAWING:
        return make_scorer(spec, model, best, pool=points, seed=seed)(points)
    pool = marginals(model, points)
    return _by_marginals(spec, model, best, seed)(pool.mean, pool.variance)


def marginals(model: Surrogate, points: Tensor) -> PoolMarginals:
    """Return each candidate's posterior, computed in chunks."""
    mean, variance = _filled(model.mean_and_variance, points)
    return PoolMarginals(mean, variance, float(getattr(model, "noise", 0.0)))


def by_chunks(score: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return the function applied to chunks of points (m, d)."""
    return lambda points: torch.cat([score(chunk) for chunk in points.split(_CHUNK)])


def _by_marginals(
    spec: AcquisitionSpec, model: Surrogate, best: float, seed: int
) -> Callable[[Tensor, Tensor], Tensor]:
    noise = float(getattr(model, "noise", 0.0))

    def score(mean: Tensor, variance: Tensor) -> Tensor:
        pool = PoolMarginals(mean, variance, noise)
        scores: Tensor = make_acquisition(spec, pool, best, seed=seed)(pool.numbers.unsqueeze(1))
        return scores

    return score


def _score_promising(
    spec: AcquisitionSpec, model: GaussianProcess, points: Tensor, best: float, seed: int
) -> Tensor:
    """Score the candidates with the largest upper bound of mean plus three deviations."""
    chosen = promising(model, points, _PROMISING)
    scores = torch.full((len(points),), -math.inf, device="cpu", dtype=points.dtype)
    scores[chosen] = _score_all(spec, model, points[chosen], best, seed)
    return scores


def promising(model: Surrogate, points: Tensor, count: int) -> Tensor:
    """Return the numbers of the most promising points, (count,).

    They have the largest upper bound of mean plus three deviations; for a model without bounds, the
    largest mean plus three deviations.

    Args:
        model: the surrogate.
        points: (m, d).
        count: at most m.
    """
    mean, variance = bounds(model, points)
    return (mean + 3 * variance.sqrt()).topk(count).indices


def bounds(model: Surrogate, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return upper bounds of mean and variance, (m,) each; without bounds, the values."""
    if isinstance(model, GaussianProcess):
        return _upper_bounds(model, points)
    pool = marginals(model, points)
    return pool.mean, pool.variance


def _upper_bounds(model: GaussianProcess, points: Tensor) -> tuple[Tensor, Tensor]:
    return _filled(model.upper_bounds, points)


def _filled(of: Callable[[Tensor], tuple[Tensor, Tensor]], points: Tensor) -> tuple[Tensor, Tensor]:
    """Return two numbers per point, (m,) each, computed in chunks.

    Results are written to preallocated memory: small results between large temporary arrays would
    pin the freed memory of those, a gigabyte for 400,000 points.
    """
    first, second = points.new_empty(2, len(points))
    for start in range(0, len(points), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        first[chunk], second[chunk] = of(points[chunk])
    return first, second


def _score_screened(
    score: Callable[[Tensor, Tensor], Tensor], model: GaussianProcess, points: Tensor
) -> Tensor:
    """Score only candidates that may be the best; bounds take a tenth of the time.

    A candidate is skipped if its score at upper bounds of mean and variance is below an exact score
    of another, so the maximum is exact.
    """
    upper = score(*_upper_bounds(model, points))
    scores = torch.full_like(upper, -math.inf)
    best = -math.inf
    for chunk in upper.argsort(descending=True).split(_CHUNK):
        if upper[chunk[0]] < best:
            break
        scores[chunk] = score(*model.mean_and_variance(points[chunk]))
        best = max(best, float(scores[chunk].max()))
    return scores


def _knowledge_gradient(model: GaussianProcess, points: Tensor) -> Tensor:
    """Return the expected increase of the largest mean by a measurement of each candidate, (m,).

    The knowledge gradient for correlated beliefs (Frazier et al. 2009, eq. 9): a measurement at x
    moves the means by z · cov(., x) / sqrt(var(x) + noise), z standard normal. Quadrature replaces
    Frazier's exact sum over the upper envelope of lines, and needs no loop over candidates.
    """
    chosen = promising(model, points, min(_KNOWN, len(points)))
    known, _ = model.mean_and_variance(model.x)
    incumbents = model.x[known.topk(min(_INCUMBENTS, len(known))).indices]
    mean, covariance = model.joint(torch.cat([points[chosen], incumbents]))
    count = len(chosen)
    deviation = (covariance.diagonal()[:count].clamp_min(1e-12) + model.noise).sqrt()
    moves = covariance[:, :count] / deviation
    # Nodes for the weight exp(-z^2), scaled to standard normal z.
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    largest = sum(
        weight * (mean.unsqueeze(1) + math.sqrt(2.0) * node * moves).amax(dim=0)
        for node, weight in zip(nodes, weights / math.sqrt(math.pi), strict=True)
    )
    scores = torch.full((len(points),), -math.inf, device="cpu", dtype=points.dtype)
    # By Jensen's inequality not negative, except for rounding errors of the quadrature.
    scores[chosen] = (largest - mean.max()).clamp_min(0.0)
    return scores


def _path(model: GaussianProcess, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Draw one function from the posterior."""
    return model.draw_path(generator)


def _noisy_improvement(
    model: GaussianProcess, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Return the logarithm of the noisy expected improvement (Letham et al. 2019).

    Each draw of the values at the observed points, from their joint posterior, gives a noiseless
    model with its own incumbent.
    """
    draws = model.draw_at_observed(_DRAWS, generator)
    incumbents = draws.max(dim=1).values

    def score(points: Tensor) -> Tensor:
        means, variance = model.given_values(points, draws)
        improvements = [
            LogExpectedImprovement(pool := PoolMarginals(mean, variance), best_f=best)(
                pool.numbers.unsqueeze(1)
            )
            for mean, best in zip(means, incumbents, strict=True)
        ]
        return torch.stack(improvements).logsumexp(dim=0) - math.log(len(draws))

    return score
