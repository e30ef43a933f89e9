"""The Gaussian process over embedded points: its predictions, and functions drawn from it.

n  observations                                 X  (n, d) their points
m  candidates                                   P  (m, d) their points
d  dimensions of the embedding                  K  (n, n) kernel matrix of X, with noise
                                                L  (n, n) its Cholesky factor
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bo_act.search.surrogate.fitting import LEAST_LENGTHSCALE, Hyperparameters
from bo_act.search.surrogate.surrogate import Surrogate

if TYPE_CHECKING:
    from botorch.models import SingleTaskGP
    from gpytorch.kernels import Kernel

_FEW = 64  # observations that bound the variance
_UNITS = 8  # of rounding, by which a mean in float32 may be off
_FEATURES = 1_024  # random Fourier features of each term of the kernel
_ROOT5 = math.sqrt(5.0)


class GaussianProcess(Surrogate):
    """A Gaussian process that answers for many single points fast.

    Args:
        x: (n, d) float64 points in [0, 1].
        y: (n,) float64 warped targets.
        blocks: columns of each feature block.
        hyperparameters: from ``fit_hyperparameters``.
        believed: (p, d) points without a value. They are taken as if observed at their predicted
            mean (the "kriging believer" of Ginsbourger et al., 2010): the mean stays, the
            uncertainty around them goes.
        ceiling: (p,) what their values are known not to exceed; infinite where nothing is known.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        blocks: Mapping[str, slice],
        hyperparameters: Hyperparameters,
        *,
        believed: Tensor | None = None,
        ceiling: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.blocks, self.hyperparameters = dict(blocks), hyperparameters
        self.pieces = list(blocks.values())
        self.noise = torch.tensor(hyperparameters.noise, device="cpu", dtype=x.dtype)
        self.prior_variance = float(hyperparameters.variances.sum())
        self._condition(x, y)
        if believed is not None and len(believed):
            value, _ = self.mean_and_variance(believed)
            if ceiling is not None:
                value = torch.minimum(value, ceiling)
            self._condition(torch.cat([x, believed]), torch.cat([y, value]))

    def _condition(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        covariance = self.covariance(x, x)
        covariance.diagonal().add_(self.noise)
        self.factor = torch.linalg.cholesky(covariance)
        residual = (y - self.hyperparameters.constant).unsqueeze(-1)
        self.weights = torch.cholesky_solve(residual, self.factor)

    def covariance(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the prior covariance of points (n, d) and (m, d), (n, m)."""
        first, *others = self._terms(a, b)
        for term in others:
            first.add_(term)
        return first

    def _terms(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """Return each term of the covariance: of every block, and of their product."""
        h = self.hyperparameters
        distances = [
            # By matrix multiplication, the distance of near points would be all rounding.
            torch.cdist(a[:, piece], b[:, piece], compute_mode="donot_use_mm_for_euclid_dist")
            for piece in self.pieces
        ]
        terms = [
            _matern(distance / lengthscale).mul_(variance)
            for distance, lengthscale, variance in zip(distances, h.own, h.variances, strict=False)
        ]
        if len(h.joint):
            pieces = zip(distances, h.joint, strict=True)
            product = [_matern(distance / lengthscale) for distance, lengthscale in pieces]
            terms.append(math.prod(product[1:], start=product[0]).mul_(h.variances[-1]))
        return terms

    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and variance of the noiseless value, (m,) each."""
        cross = self.covariance(self.x, points)
        mean = self.hyperparameters.constant + (cross.mT @ self.weights).squeeze(-1)
        half = torch.linalg.solve_triangular(self.factor, cross, upper=False)
        return mean, (self.prior_variance - half.square().sum(dim=0)).clamp_min(1e-12)

    def contributions(self, points: Tensor) -> dict[str, Tensor]:
        """Return what each part of the model adds to the posterior mean, name → (m,).

        The parts are ``prior`` (the constant), each block by its own term, and ``together``, the
        product of the blocks. Their sum is the mean.
        """
        parts = {"prior": self.y.new_full((len(points),), self.hyperparameters.constant)}
        names = list(self.blocks)
        for name, term in zip([*names, "together"], self._terms(self.x, points), strict=False):
            parts[name] = (term.mT @ self.weights).squeeze(-1)
        return parts

    def joint(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean (m,) and covariance (m, m) of noiseless values together."""
        cross = self.covariance(self.x, points)
        mean = self.hyperparameters.constant + (cross.mT @ self.weights).squeeze(-1)
        half = torch.linalg.solve_triangular(self.factor, cross, upper=False)
        return mean, self.covariance(points, points) - half.mT @ half

    def upper_bounds(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return upper bounds of the posterior mean and variance, (m,) each, in float64.

        The mean is computed in float32 and raised by what that may cost. The variance is that
        given a few of the observations alone, chosen by pivoted Cholesky: more observations only
        lower it.

        Args:
            points: (m, d).
        """
        x, weights, factor, few = self._narrow
        cross = self.covariance(x, points.float())
        # A sum of n rounded products is off by at most n units in the last place of their sizes.
        unit = torch.finfo(torch.float32).eps * self.prior_variance
        slack = _UNITS * unit * float(self.weights.abs().sum())
        mean = self.hyperparameters.constant + (cross.mT @ weights).squeeze(-1).double() + slack
        half = torch.linalg.solve_triangular(factor, cross[few], upper=False)
        variance = self.prior_variance * (1 + 1e-4) - half.square().sum(dim=0).double()
        return mean, variance.clamp_min(1e-12)

    @cached_property
    def _narrow(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        few = self._spread(min(_FEW, len(self.x)))
        some = self.covariance(self.x[few], self.x[few])
        # More noise than there is bounds the variance from above, too, and steadies float32.
        some.diagonal().add_(max(float(self.noise), 1e-3 * self.prior_variance))
        factor = torch.linalg.cholesky(some)
        return self.x.float(), self.weights.float(), factor.float(), few

    def _spread(self, count: int) -> Tensor:
        """Return the observations that leave each other the most variance, by pivoted Cholesky."""
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

        Decoupled sampling (Wilson et al. 2020, eq. 13): a function of the prior by random Fourier
        features, corrected by what it misses at the observations. The spectral density of the
        Matérn-5/2 kernel is Student's t with five degrees of freedom.
        """
        x, h = self.x, self.hyperparameters
        options: dict[str, Any] = {"device": "cpu", "dtype": x.dtype, "generator": generator}
        pieces = self.pieces
        terms = [[(b, h.own[b])] for b in range(len(pieces))]
        if len(h.joint):
            terms.append(list(enumerate(h.joint)))
        frequencies, sizes = [], []
        for variance, term in zip(h.variances, terms, strict=True):
            frequency = torch.zeros(x.shape[1], _FEATURES, device="cpu", dtype=x.dtype)
            for block, lengthscale in term:
                columns = pieces[block]
                normal = torch.randn(columns.stop - columns.start, _FEATURES, **options)
                # A chi-squared variable of five degrees is a sum of five squares.
                chi = torch.randn(5, _FEATURES, **options).square().sum(dim=0)
                frequency[columns] = normal * (5 / chi).sqrt() / lengthscale
            frequencies.append(frequency)
            size = math.sqrt(2 * variance / _FEATURES)
            sizes.append(torch.full((_FEATURES,), size, device="cpu", dtype=x.dtype))
        frequency = torch.cat(frequencies, dim=1)
        phase = 2 * math.pi * torch.rand(frequency.shape[1], **options)
        weights = torch.cat(sizes) * torch.randn(frequency.shape[1], **options)

        def prior(points: Tensor) -> Tensor:
            return self.hyperparameters.constant + (points @ frequency + phase).cos_() @ weights

        error = self.noise.sqrt() * torch.randn(len(x), **options)
        missed = (self.y - prior(x) - error).unsqueeze(-1)
        correction = torch.cholesky_solve(missed, self.factor)

        def path(points: Tensor) -> Tensor:
            return prior(points) + (self.covariance(self.x, points).mT @ correction).squeeze(-1)

        return path

    def draw_at_observed(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the noiseless values at the observed points from their posterior, (count, n)."""
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
            values: (s, n), each row one set of values.

        Returns:
            Means (s, m) and the variance (m,), which does not depend on the values.
        """
        factor = self._noiseless_factor
        cross = self.covariance(self.x, points)
        half = torch.linalg.solve_triangular(factor, cross, upper=False)
        away = (values - self.hyperparameters.constant).mT
        missed = torch.linalg.solve_triangular(factor, away, upper=False)
        variance = self.prior_variance - half.square().sum(dim=0)
        return self.hyperparameters.constant + missed.mT @ half, variance.clamp_min(1e-12)

    @cached_property
    def _noiseless_factor(self) -> Tensor:
        factor: Tensor = torch.linalg.cholesky(self.covariance(self.x, self.x) + self._jitter())
        return factor

    def _jitter(self) -> Tensor:
        least = torch.full(
            (len(self.x),), 1e-6 * self.prior_variance, device="cpu", dtype=self.x.dtype
        )
        return torch.diag(least)

    def botorch_model(self) -> SingleTaskGP:
        """Return the same model, of the same numbers, for whatever else BoTorch can do with it."""
        from botorch.models import SingleTaskGP

        h = self.hyperparameters
        model = SingleTaskGP(
            self.x,
            self.y.unsqueeze(-1),
            covar_module=_botorch_kernel(self.pieces, h),
            outcome_transform=None,
        )
        model.likelihood.noise = h.noise
        model.mean_module.constant = h.constant
        return model.eval()


def _botorch_kernel(pieces: Sequence[slice], h: Hyperparameters) -> Kernel:
    from gpytorch.constraints import GreaterThan
    from gpytorch.kernels import AdditiveKernel, MaternKernel, ProductKernel, ScaleKernel

    def matern(columns: slice, lengthscale: float) -> Kernel:
        kernel = MaternKernel(
            nu=2.5,
            active_dims=torch.arange(columns.start, columns.stop, device="cpu"),
            lengthscale_constraint=GreaterThan(LEAST_LENGTHSCALE, transform=None),
        ).double()
        kernel.lengthscale = lengthscale
        return kernel

    def scaled(kernel: Kernel, variance: float) -> Kernel:
        kernel = ScaleKernel(kernel).double()
        kernel.outputscale = variance
        return kernel

    terms = [matern(columns, s) for columns, s in zip(pieces, h.own, strict=True)]
    if len(h.joint):
        factors = [matern(columns, s) for columns, s in zip(pieces, h.joint, strict=True)]
        terms.append(ProductKernel(*factors))
    return AdditiveKernel(*[scaled(t, a) for t, a in zip(terms, h.variances, strict=True)])


def _matern(scaled: Tensor) -> Tensor:
    root = scaled.mul_(_ROOT5)
    decay = (-root).exp_()
    return root.square().div_(3).add_(root).add_(1).mul_(decay)
