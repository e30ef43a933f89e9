"""The Gaussian process over embedded points: predictions, and draws from the posterior.

n  observations                                 X  (n, d) their points
m  candidates                                   P  (m, d) their points
d  dimensions of the embedding                  K  (n, n) kernel matrix of X, with noise
                                                L  (n, n) its Cholesky factor
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from botorch.models import SingleTaskGP
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.likelihoods.noise_models import FixedGaussianNoise
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from bo_act.dependencies.torch_state import plain_torch
from bo_act.search.surrogate.exact import ExactPosterior
from bo_act.search.surrogate.fitting import fit
from bo_act.search.surrogate.kernel import MOST, BlockKernel, between, exact, put
from bo_act.search.surrogate.surrogate import Surrogate

_FEW = 64  # observations that bound the variance
_UNITS = 8  # roundings that a mean in float32 may be off by
_FEATURES = 1_024  # random Fourier features of each term of the kernel
_LEAST_NOISE = 1e-4
_LEAST_KNOWN = 1e-6  # GPyTorch warns below it
_NOISE_PLACE, _NOISE_SPREAD = -4.0, 1.0  # log-normal prior of the noise variance, BoTorch's


class GaussianProcess(SingleTaskGP, Surrogate):  # type: ignore[misc]  # BoTorch's bases differ
    """BoTorch's ``SingleTaskGP`` with a ``BlockKernel``, and fast predictions at many points.

    Until ``fit`` or BoTorch's ``fit_gpytorch_mll`` fits them, hyperparameters are at the modes of
    their priors, and variances at the means.

    Args:
        train_X: (n, d) float64 points in [0, 1].
        train_Y: (n, 1) float64 warped targets.
        blocks: columns of each feature block.
        least_noise: known part of the noise variance; fitting may raise it.
        train_Yvar: (n, 1) known variance of each measurement, if any; fitting may add a common one.
        kernel: as in ``BlockKernel``.
        ard: as in ``BlockKernel``.
    """

    def __init__(
        self,
        train_X: Tensor,
        train_Y: Tensor,
        blocks: Mapping[str, slice],
        *,
        least_noise: float = 0.0,
        train_Yvar: Tensor | None = None,
        kernel: str = "matern_5_2",
        ard: bool = False,
    ) -> None:
        super().__init__(
            train_X,
            train_Y,
            likelihood=_likelihood(least_noise, train_Yvar),
            covar_module=BlockKernel(blocks, kernel=kernel, ard=ard),
            outcome_transform=None,
        )
        self.blocks = dict(blocks)
        self._kept: dict[str, Any] = {}

    @property
    def x(self) -> Tensor:
        """The points that the model is conditioned on, (n, d)."""
        return self.train_inputs[0]

    @property
    def y(self) -> Tensor:
        """Their warped targets, (n,)."""
        return self.train_targets

    @property
    def noise(self) -> Tensor:
        """The noise variance of a measurement, (1,); the mean of known ones."""
        noise: Tensor = self.likelihood.noise.detach().mean(dim=-1, keepdim=True)
        return noise

    @property
    def constant(self) -> float:
        """The prior mean."""
        return float(self.mean_module.constant.item())

    @property
    def prior_variance(self) -> float:
        """The prior variance of the noiseless value, the same everywhere."""
        return float(sum(term.outputscale.item() for term in self.covar_module.kernels))

    def believe(self, points: Tensor, ceiling: Tensor | None = None) -> None:
        """Treat points without a value as observed at their predicted mean.

        This is the "kriging believer" of Ginsbourger et al. (2010): the mean stays, and the
        uncertainty around the points shrinks.

        Args:
            points: (p, d).
            ceiling: (p,) upper bounds of their values; infinite if unknown.
        """
        if not len(points):
            return
        value, _ = self.mean_and_variance(points)
        if ceiling is not None:
            value = torch.minimum(value, ceiling)
        x, y = torch.cat([self.x, points]), torch.cat([self.y, value])
        if isinstance(self.likelihood, FixedNoiseGaussianLikelihood):
            known = self.likelihood.noise_covar.noise
            more = known.mean().expand(len(points))  # as if measured like the others
            self.likelihood.noise_covar = FixedGaussianNoise(torch.cat([known, more]))
        cast(Any, self).set_train_data(x, y, strict=False)  # of GPyTorch, which has no types

    def _clear_cache(self) -> None:
        """Drop results for other hyperparameters.

        GPyTorch calls this before training, and after loading a state.
        """
        super()._clear_cache()
        self._kept = {}

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """Return a result, computed once for the current hyperparameters and observations."""
        if self._kept.get("x") is not self.x or self._kept.get("y") is not self.y:
            self._kept = {"x": self.x, "y": self.y}
        if name not in self._kept:
            made = make()
            self._kept |= {"x": self.x, "y": self.y, name: made}
        return self._kept[name]

    @property
    def exact(self) -> ExactPosterior:
        """The posterior, from one Cholesky factor."""
        posterior: ExactPosterior = self._once("exact", lambda: ExactPosterior(self))
        return posterior

    @torch.no_grad()
    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the prior covariance of points (n, d) and (m, d), (n, m)."""
        covariance: Tensor = self.covar_module.forward(a, b)
        return covariance

    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and variance of the noiseless value, (m,) each."""
        return self.exact.mean_and_variance(points)

    @torch.no_grad()
    def contributions(self, points: Tensor) -> dict[str, Tensor]:
        """Return the contribution of each part of the model to the posterior mean, name → (m,).

        The parts are ``prior`` (the constant), the term of each block, and ``together``, the
        product of the blocks. Their sum is the mean.
        """
        parts = {"prior": self.y.new_full((len(points),), self.constant)}
        terms = self.covar_module.terms(self.x, points)
        for name, term in zip([*self.blocks, "together"], terms, strict=False):
            parts[name] = (term.mT @ self.exact.weights).squeeze(-1)
        return parts

    def joint(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the joint posterior of noiseless values: mean (m,) and covariance (m, m)."""
        cross = self.covariance(self.x, points)
        mean = self.constant + (cross.mT @ self.exact.weights).squeeze(-1)
        half = torch.linalg.solve_triangular(self.exact.factor, cross, upper=False)
        return mean, self.covariance(points, points) - half.mT @ half

    def upper_bounds(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return upper bounds of the posterior mean and variance, (m,) each, in float64.

        The mean is computed in float32, plus a bound of the rounding error. The variance is
        conditioned on a few observations only, chosen by pivoted Cholesky; further observations
        would only lower it.

        Args:
            points: (m, d).
        """
        x, weights, factor, few, most, slack = self._once("narrow", self._narrowed)
        cross = self.covariance(x, points.float())
        mean = self.constant + (cross.mT @ weights).squeeze(-1).double() + slack
        half = torch.linalg.solve_triangular(factor, cross[few], upper=False)
        variance = most * (1 + 1e-4) - half.square().sum(dim=0).double()
        return mean, variance.clamp_min(1e-12)

    def _narrowed(self) -> tuple[Tensor, Tensor, Tensor, Tensor, float, float]:
        few = self._spread(min(_FEW, len(self.x)))
        covariance = self.covariance(self.x[few], self.x[few])
        # Additional noise only raises the variance, and it stabilizes float32.
        most = self.prior_variance
        covariance.diagonal().add_(max(float(self.likelihood.noise.detach().max()), 1e-3 * most))
        factor = torch.linalg.cholesky(covariance)
        weights = self.exact.weights
        # The error of a sum of n rounded products is at most n units in the last place of their
        # sizes; rounding the points adds an error to each product.
        units = _UNITS + self.covar_module.steepness()
        slack = units * torch.finfo(torch.float32).eps * most * float(weights.abs().sum())
        return self.x.float(), weights.float(), factor.float(), few, most, slack

    def _spread(self, count: int) -> Tensor:
        """Choose observations by pivoted Cholesky, each where the most variance is left."""
        left = torch.full((len(self.x),), self.prior_variance, device="cpu", dtype=self.x.dtype)
        rows = self.x.new_zeros(0, len(self.x))
        chosen: list[int] = []
        for _ in range(count):
            pivot = int(left.argmax())
            chosen.append(pivot)
            row = self.covariance(self.x[[pivot]], self.x)[0]
            row = (row - rows[:, pivot] @ rows) / left[pivot].clamp_min(1e-9).sqrt()
            rows = torch.cat([rows, row.unsqueeze(0)])
            left = (left - row.square()).clamp_min(0.0)
            left[pivot] = -1.0
        return torch.tensor(chosen, device="cpu", dtype=torch.int64)

    def draw_path(self, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """Draw one function from the posterior, points (m, d) → values (m,).

        Decoupled sampling (Wilson et al. 2020, eq. 13) draws a function from the prior by random
        Fourier features and corrects its residuals at the observations. The spectral density of a
        Matérn kernel is Student's t; with smoothness 5/2 it has five degrees of freedom.
        """
        x, degrees = self.x, self.covar_module.correlation.degrees
        options: dict[str, Any] = {"device": "cpu", "dtype": x.dtype, "generator": generator}
        frequencies, sizes = [], []
        for term, factors in zip(self.covar_module.kernels, self.covar_module.factors, strict=True):
            frequency = torch.zeros(x.shape[1], _FEATURES, device="cpu", dtype=x.dtype)
            for factor in factors:
                columns = factor.active_dims
                normal = torch.randn(len(columns), _FEATURES, **options)
                if math.isfinite(degrees):
                    # Chi-squared: a sum of as many squares as degrees of freedom.
                    chi = torch.randn(int(degrees), _FEATURES, **options).square().sum(dim=0)
                    normal = normal * (degrees / chi).sqrt()
                frequency[columns] = normal / factor.lengthscale.detach().mT
            frequencies.append(frequency)
            size = math.sqrt(2 * term.outputscale.item() / _FEATURES)
            sizes.append(torch.full((_FEATURES,), size, device="cpu", dtype=x.dtype))
        frequency = torch.cat(frequencies, dim=1)
        phase = 2 * math.pi * torch.rand(frequency.shape[1], **options)
        weights = torch.cat(sizes) * torch.randn(frequency.shape[1], **options)
        constant = self.constant

        def prior(points: Tensor) -> Tensor:
            return constant + (points @ frequency + phase).cos_() @ weights

        noise: Tensor = self.likelihood.noise.detach()
        error = noise.sqrt() * torch.randn(len(x), **options)
        missed = (self.y - prior(x) - error).unsqueeze(-1)
        correction = torch.cholesky_solve(missed, self.exact.factor)

        def path(points: Tensor) -> Tensor:
            return prior(points) + (self.covariance(self.x, points).mT @ correction).squeeze(-1)

        return path

    def draw_at_observed(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw noiseless values at the observed points from the posterior, (count, n)."""
        mean, covariance = self.joint(self.x)
        factor = torch.linalg.cholesky(covariance + self._jitter())
        normal = torch.randn(
            len(self.x), count, device="cpu", dtype=self.x.dtype, generator=generator
        )
        draws: Tensor = mean.unsqueeze(-1) + factor @ normal
        return draws.mT

    def given_values(self, points: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Predict from noiseless values at the observed points.

        Args:
            points: (m, d).
            values: (s, n), one set of values per row.

        Returns:
            Means (s, m), and the variance (m,), the same for all sets.
        """
        factor = self._once("noiseless", self._noiseless_factor)
        cross = self.covariance(self.x, points)
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        away = (values - self.constant).mT
        missed = torch.linalg.solve_triangular(factor, away, upper=False)
        variance = self.prior_variance - half.square().sum(dim=0)
        return self.constant + missed.mT @ half, variance.clamp_min(1e-12)

    def _noiseless_factor(self) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(self.covariance(self.x, self.x) + self._jitter())
        return factor

    def _jitter(self) -> Tensor:
        least = torch.full(
            (len(self.x),), 1e-6 * self.prior_variance, device="cpu", dtype=self.x.dtype
        )
        return torch.diag(least)


def _likelihood(
    least_noise: float, known: Tensor | None
) -> GaussianLikelihood | FixedNoiseGaussianLikelihood:
    least = min(max(least_noise, _LEAST_NOISE), MOST)
    fitted = {
        "noise_prior": LogNormalPrior(
            exact(_NOISE_PLACE), exact(_NOISE_SPREAD), validate_args=False
        ),
        "noise_constraint": between(least, 2 * MOST),
    }
    if known is None:
        likelihood = GaussianLikelihood(**fitted).double()
        raw = likelihood.raw_noise
    else:
        likelihood = FixedNoiseGaussianLikelihood(
            known.squeeze(-1).clamp(_LEAST_KNOWN, MOST), learn_additional_noise=True, **fitted
        ).double()
        raw = likelihood.second_noise_covar.raw_noise
    put(raw, max(math.exp(_NOISE_PLACE - _NOISE_SPREAD**2), least))
    return likelihood


@plain_torch()
def fit_gaussian_process(
    x: Tensor,
    y: Tensor,
    blocks: Mapping[str, slice],
    *,
    least_noise: float = 0.0,
    known_noise: Tensor | None = None,
    believed: Tensor | None = None,
    ceiling: Tensor | None = None,
    kernel: str = "matern_5_2",
    ard: bool = False,
) -> tuple[GaussianProcess, str]:
    """Fit a model to observations and to points without a value.

    Args:
        x: (n, d) float64 points in [0, 1].
        y: (n,) float64 warped targets.
        blocks: columns of each feature block.
        least_noise: known part of the noise variance.
        known_noise: (n,) known variance of each measurement.
        believed: (p, d) points without a value, see ``GaussianProcess.believe``.
        ceiling: (p,) upper bounds of their values.
        kernel: as in ``BlockKernel``.
        ard: as in ``BlockKernel``.

    Returns:
        The model, and the reason if it kept its priors, else ``""``.
    """
    known = None if known_noise is None else known_noise.unsqueeze(-1)
    model = GaussianProcess(
        x,
        y.unsqueeze(-1),
        blocks,
        least_noise=least_noise,
        train_Yvar=known,
        kernel=kernel,
        ard=ard,
    )
    failure = fit(model)
    if believed is not None:
        model.believe(believed, ceiling)
    return model, failure
