"""The kernel over feature blocks: a stationary kernel for each block, and their product."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from botorch.utils.constraints import LogTransformedInterval
from gpytorch.kernels import (
    AdditiveKernel,
    Kernel,
    MaternKernel,
    ProductKernel,
    RBFKernel,
    ScaleKernel,
)
from gpytorch.priors import GammaPrior, LogNormalPrior
from torch import Tensor
from torch.nn import Parameter

LEAST_LENGTHSCALE = 0.025
"""Lower bound of fitted length scales, as in BoTorch's default kernel."""
_LEAST_VARIANCE = 1e-4
MOST = 1e4
"""Upper bound of fitted length scales and variances."""
_SCALE_SHAPE, _SCALE_RATE = 2.0, 3.0
_ROOT3, _ROOT5 = math.sqrt(3.0), math.sqrt(5.0)


class BlockKernel(AdditiveKernel):
    """The sum of one scaled kernel per block and the scaled product of all blocks.

    With its own term, a block can explain the value alone; in the product, functions are similar
    only if all blocks are. The parts are GPyTorch's kernels, with the log-normal prior of Hvarfner
    et al. (2024, arXiv 2402.02229) on length scales and a Gamma prior on variances. This class
    evaluates all of them at once: distances are computed once per block, and without matrix
    multiplication, whose rounding would drown the distances of near points.

    Args:
        blocks: columns of each feature block.
        kernel: of a block, a name in ``CORRELATIONS``.
        ard: fit one length scale per column (automatic relevance determination) instead of one per
            block.
    """

    def __init__(
        self, blocks: Mapping[str, slice], *, kernel: str = "matern_5_2", ard: bool = False
    ) -> None:
        correlation = CORRELATIONS[kernel]
        terms = [_scaled(_factor(correlation, columns, ard)) for columns in blocks.values()]
        if len(blocks) > 1:
            factors = [_factor(correlation, columns, ard) for columns in blocks.values()]
            terms.append(_scaled(ProductKernel(*factors)))
        super().__init__(*terms)
        self.correlation, self.ard = correlation, ard
        self.pieces = list(blocks.values())
        self.double()
        for term, factors in zip(self.kernels, self.factors, strict=True):
            put(term.raw_outputscale, _SCALE_SHAPE / _SCALE_RATE)  # the prior's mean
            for factor in factors:
                prior = factor.lengthscale_prior
                put(factor.raw_lengthscale, math.exp(prior.loc - prior.scale**2))  # its mode

    @property
    def factors(self) -> list[list[Kernel]]:
        """The kernels of each term; the product, the last term, has one per block."""
        return [
            list(base.kernels) if isinstance(base, ProductKernel) else [base]
            for base in (term.base_kernel for term in self.kernels)
        ]

    def steepness(self) -> float:
        """Return the most roundings of points in [0, 1] that a correlation may change by."""
        # Length scales per column divide points before their differences: two more roundings.
        share = 1.5 if self.ard else 0.5
        return share * max(
            sum(
                float((1 / factor.lengthscale.detach()).expand(1, len(factor.active_dims)).norm())
                for factor in factors
            )
            for factors in self.factors
        )

    def terms(self, x1: Tensor, x2: Tensor, diag: bool = False) -> list[Tensor]:
        """Return each term of the covariance: those of the blocks, and their product.

        Args:
            x1: (..., n, d).
            x2: (..., m, d).
            diag: only pairs (i, i), n = m.

        Returns:
            Tensors of shape (..., n, m), or (..., n) with ``diag``.
        """
        pairs = [(x1[..., b], x2[..., b]) for b in self.pieces]
        distances = [] if self.ard else [_distance(a, b, diag) for a, b in pairs]
        terms = []
        for number, (term, factors) in enumerate(zip(self.kernels, self.factors, strict=True)):
            used = range(len(pairs)) if len(factors) > 1 else [number]
            apart = [
                _scaled_distance(*pairs[block], factor.lengthscale, diag)
                if self.ard
                else (s := distances[block]) / _like(factor.lengthscale, s, diag)
                for block, factor in zip(used, factors, strict=True)
            ]
            parts = [self.correlation.at(scaled) for scaled in apart]
            scale = term.outputscale[..., None, None]
            terms.append(math.prod(parts[1:], start=parts[0]).mul_(_like(scale, parts[0], diag)))
        return terms

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Tensor:
        """Return the covariance, (..., n, m), or (..., n) with ``diag``."""
        if params.get("last_dim_is_batch"):
            covariance: Tensor = super().forward(x1, x2, diag=diag, **params)
            return covariance
        if diag and x1 is x2:
            variance = sum(term.outputscale for term in self.kernels)
            constant: Tensor = variance.unsqueeze(-1).to(x1.dtype) * x1.new_ones(x1.shape[:-1])
            return constant
        total, *others = self.terms(x1, x2, diag)
        for term in others:
            total.add_(term)
        return total


def matern52(scaled: Tensor) -> Tensor:
    """Return the Matérn-5/2 correlation at distances in units of the length scale.

    Args:
        scaled: any shape; overwritten.
    """
    root = scaled.mul_(_ROOT5)
    decay = (-root).exp_()
    correlation: Tensor = root.square().div_(3).add_(root).add_(1).mul_(decay)
    return correlation


def _matern32(scaled: Tensor) -> Tensor:
    root = _ROOT3 * scaled
    return (1 + root) * (-root).exp()


def _matern12(scaled: Tensor) -> Tensor:
    return (-scaled).exp().clone()


def _squared_exponential(scaled: Tensor) -> Tensor:
    return (-0.5 * scaled.square()).exp().clone()


@dataclass(frozen=True)
class Correlation:
    """A stationary correlation, no steeper than 1 per length scale.

    Attributes:
        make: GPyTorch's kernel.
        at: the correlation at distances in units of the length scale, of any shape. Argument and
            result may be overwritten: what automatic differentiation needs is copied.
        degrees: degrees of freedom of the spectral density, Student's t; infinite if it is normal.
    """

    make: Callable[..., Kernel]
    at: Callable[[Tensor], Tensor]
    degrees: float


CORRELATIONS = {
    "matern_5_2": Correlation(partial(MaternKernel, nu=2.5), matern52, 5),
    "matern_3_2": Correlation(partial(MaternKernel, nu=1.5), _matern32, 3),
    "matern_1_2": Correlation(partial(MaternKernel, nu=0.5), _matern12, 1),
    "rbf": Correlation(RBFKernel, _squared_exponential, math.inf),
}
"""Name in a study file → correlation."""


def _distance(a: Tensor, b: Tensor, diag: bool) -> Tensor:
    distance: Tensor = (
        torch.linalg.vector_norm(a - b, dim=-1)
        if diag
        else torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    )
    return distance


def _scaled_distance(a: Tensor, b: Tensor, lengthscale: Tensor, diag: bool) -> Tensor:
    """Return distances in units of one length scale per column."""
    units = lengthscale.to(a.dtype)
    # Copied, because automatic differentiation needs the distances unchanged.
    return _distance(a / units, b / units, diag).clone()


def _like(value: Tensor, other: Tensor, diag: bool) -> Tensor:
    """Return (..., 1, 1) hyperparameters with the dtype of another tensor, and axes that fit it."""
    return (value.squeeze(-1) if diag else value).to(other.dtype)


def _factor(correlation: Correlation, columns: slice, ard: bool) -> Kernel:
    width = columns.stop - columns.start
    location = math.sqrt(2.0) + 0.5 * math.log(width)
    return correlation.make(
        ard_num_dims=width if ard else None,
        active_dims=torch.arange(columns.start, columns.stop, device="cpu"),
        lengthscale_prior=LogNormalPrior(
            exact(location), exact(math.sqrt(3.0)), validate_args=False
        ),
        lengthscale_constraint=between(LEAST_LENGTHSCALE, MOST),
    )


def _scaled(kernel: Kernel) -> ScaleKernel:
    return ScaleKernel(
        kernel,
        outputscale_prior=GammaPrior(exact(_SCALE_SHAPE), exact(_SCALE_RATE), validate_args=False),
        outputscale_constraint=between(_LEAST_VARIANCE, MOST),
    )


def exact(number: float) -> Tensor:
    """Return a number as a float64 tensor; GPyTorch would store a plain number in float32."""
    return torch.tensor(number, device="cpu", dtype=torch.float64)


def between(low: float, high: float) -> LogTransformedInterval:
    """Return the bounds of a hyperparameter that is fitted as its logarithm."""
    interval = LogTransformedInterval(low, high)
    interval.lower_bound, interval.upper_bound = exact(low), exact(high)
    return interval


def put(raw: Parameter, value: float) -> None:
    """Set a hyperparameter that is fitted as its logarithm."""
    with torch.no_grad():
        raw.fill_(math.log(value))
