"""The surrogate: a Gaussian process over embedded points.

n  observations                                 X  (n, d) their points
m  candidates                                   P  (m, d) their points
d  dimensions of the embedding                  K  (n, n) kernel matrix of X, with noise
                                                L  (n, n) its Cholesky factor
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.exceptions.warnings import OptimizationWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.utils.sampling import manual_seed
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, ProductKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from bo_act.search.pointwise import PointwiseModel

# Relative change of the objective at which L-BFGS stops. scipy's 2e-9 took some 120 evaluations a
# fit; this took 2.7 times less time, for about 0.01 of log likelihood an observation.
_FTOL = 1e-5


def block_kernel(blocks: Mapping[str, slice]) -> Kernel:
    """Return a kernel with one length scale a block: the sum of the blocks and their product.

    A block's own term lets it explain the value alone; the product lets functions be alike only
    where they are alike in every block. Length scales have the dimension-scaled prior of
    Hvarfner et al. (2024), arXiv 2402.02229.
    """

    def matern(columns: slice) -> MaternKernel:
        dimensions = torch.arange(columns.start, columns.stop)
        prior = LogNormalPrior(
            2.0**0.5 + 0.5 * float(torch.tensor(len(dimensions)).log()), 3.0**0.5
        )
        return MaternKernel(
            nu=2.5,
            active_dims=dimensions,
            lengthscale_prior=prior,
            lengthscale_constraint=GreaterThan(0.025, transform=None, initial_value=prior.mode),
        )

    def scaled(kernel: Kernel) -> ScaleKernel:
        return ScaleKernel(kernel, outputscale_prior=GammaPrior(2.0, 3.0))

    terms = [scaled(matern(columns)) for columns in blocks.values()]
    if len(blocks) > 1:
        terms.append(scaled(ProductKernel(*[matern(columns) for columns in blocks.values()])))
    return terms[0] if len(terms) == 1 else AdditiveKernel(*terms)


def fit_gp(
    x: Tensor, y: Tensor, blocks: Mapping[str, slice], *, seed: int
) -> tuple[SingleTaskGP, str]:
    """Fit a Gaussian process by the maximum of its marginal likelihood and priors.

    Args:
        x: (n, d) float64 points in [0, 1].
        y: (n,) float64 warped targets.
        blocks: columns of each feature block.
        seed: of the restarts that a failed optimization makes; nothing else is random.

    Returns:
        The fitted model and ``""``. Where every restart fails, the model with the priors' modes
        and the reason.
    """
    model = SingleTaskGP(
        x, y.unsqueeze(-1), covar_module=block_kernel(blocks), outcome_transform=None
    )
    failure = ""
    initial = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        with manual_seed(seed), warnings.catch_warnings():
            # A restart is part of fitting; only the failure of all of them is of interest.
            warnings.simplefilter("ignore", OptimizationWarning)
            fit_gpytorch_mll(
                ExactMarginalLogLikelihood(model.likelihood, model),
                optimizer_kwargs={"options": {"ftol": _FTOL}},
            )
    except ModelFittingError as error:
        model.load_state_dict(initial)
        failure = str(error)
    model.eval()
    return model, failure


class PoolModel(PointwiseModel):
    """A fitted Gaussian process that answers for many single points fast.

    The Cholesky factor is computed once and every point costs one triangular solve, where the
    general posterior builds a joint distribution a point.

    Args:
        model: fitted, with n observations.
        believed: (p, d) points without a value. They are taken as if observed at their predicted
            mean (the "kriging believer" of Ginsbourger et al., 2010): the mean stays, the
            uncertainty around them goes.
        ceiling: (p,) what their values are known not to exceed; infinite where nothing is known.
    """

    def __init__(
        self,
        model: SingleTaskGP,
        believed: Tensor | None = None,
        ceiling: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kernel = model.covar_module
        self.noise = model.likelihood.noise.detach()
        self.constant = model.mean_module.constant.detach()
        self._condition(model.train_inputs[0], model.train_targets)
        if believed is not None and len(believed):
            value, _ = self.mean_and_variance(believed)
            if ceiling is not None:
                value = torch.minimum(value, ceiling)
            self._condition(torch.cat([self.x, believed]), torch.cat([self.y, value]))

    def _condition(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        with torch.no_grad():
            covariance = self.kernel(x).to_dense()
            covariance = covariance + self.noise * torch.eye(len(x), dtype=x.dtype)
            self.factor = psd_safe_cholesky(covariance)
            self.weights = torch.cholesky_solve((y - self.constant).unsqueeze(-1), self.factor)

    def mean_and_variance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and variance of the noiseless value, (m,) each.

        Args:
            points: (m, d).
        """
        with torch.no_grad():
            cross = self.kernel(self.x, points).to_dense()
            mean = self.constant + (cross.mT @ self.weights).squeeze(-1)
            half = torch.linalg.solve_triangular(self.factor, cross, upper=False)
            prior = self.kernel(points, diag=True)
            return mean, (prior - half.square().sum(dim=0)).clamp_min(1e-12)
