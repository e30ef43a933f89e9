"""The Gaussian process against BoTorch's and GPyTorch's own, in numbers, slope and predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, ProductKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, smooth
from scipy.spatial.distance import pdist
from scipy.stats import rankdata

from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate import fitting
from bo_act.search.surrogate.fitting import (
    Hyperparameters,
    fit_hyperparameters,
    log_posterior,
)
from bo_act.search.surrogate.gaussian_process import GaussianProcess

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")

TWO = BLOCKS
ONE = {"outputs": slice(0, 4)}
THREE = {"outputs": slice(0, 1), "fim": slice(1, 3), "other": slice(3, 4)}
ALL = pytest.mark.parametrize("blocks", [ONE, TWO, THREE], ids=["one", "two", "three"])
PENDING = slice(40, 44)


def sizes(blocks: dict[str, slice]) -> np.ndarray:
    return np.array([b.stop - b.start for b in blocks.values()], dtype=np.float64)


def apart(x: np.ndarray, blocks: dict[str, slice]) -> np.ndarray:
    """Distances of all pairs in each block."""
    return np.stack([pdist(x[:, columns]) for columns in blocks.values()])


def gpytorch_kernel(blocks: dict[str, slice]) -> Kernel:
    """The kernel with its priors, in GPyTorch's pieces."""

    def matern(columns: slice) -> MaternKernel:
        d = torch.tensor(float(columns.stop - columns.start))
        return MaternKernel(
            nu=2.5,
            active_dims=torch.arange(columns.start, columns.stop),
            lengthscale_prior=LogNormalPrior(float(2**0.5 + 0.5 * d.log()), 3**0.5),
            lengthscale_constraint=GreaterThan(0.025, transform=None),
        )

    def scaled(kernel: Kernel) -> ScaleKernel:
        return ScaleKernel(kernel, outputscale_prior=GammaPrior(2.0, 3.0))

    terms = [scaled(matern(columns)) for columns in blocks.values()]
    if len(blocks) > 1:
        terms.append(scaled(ProductKernel(*[matern(columns) for columns in blocks.values()])))
    return AdditiveKernel(*terms)


def gpytorch_value(x, y, blocks, h: Hyperparameters) -> float:
    """Log marginal likelihood and log priors, by GPyTorch."""
    model = SingleTaskGP(
        torch.from_numpy(x),
        torch.from_numpy(y).unsqueeze(-1),
        covar_module=gpytorch_kernel(blocks).double(),
        outcome_transform=None,
    )
    terms = model.covar_module.kernels
    for term, variance in zip(terms, h.variances, strict=True):
        term.outputscale = variance
    for term, lengthscale in zip(terms, h.own, strict=False):
        term.base_kernel.lengthscale = lengthscale
    if len(h.joint):
        for factor, lengthscale in zip(terms[-1].base_kernel.kernels, h.joint, strict=True):
            factor.lengthscale = lengthscale
    model.likelihood.noise = h.noise
    model.mean_module.constant = h.constant
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()
    return mll(model(*model.train_inputs), model.train_targets).item() * len(y)


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return CLOUD.copy()


def observed(cloud: np.ndarray, n: int = 15) -> tuple[np.ndarray, np.ndarray]:
    return cloud[:n], warp_targets(smooth(cloud[:n]), "rank_normal")


@pytest.fixture(scope="module", params=[ONE, TWO, THREE], ids=["one", "two", "three"])
def fitted(request, cloud) -> GaussianProcess:
    return fit(cloud, request.param)


def fit(cloud: np.ndarray, blocks: dict[str, slice]) -> GaussianProcess:
    x, y = observed(cloud)
    found, failure = fit_hyperparameters(x, y, blocks)
    assert failure == ""
    return GaussianProcess(torch.from_numpy(x), torch.from_numpy(y), blocks, found)


def conditioned(
    model: GaussianProcess, believed: torch.Tensor, ceiling: torch.Tensor | None = None
) -> GaussianProcess:
    return GaussianProcess(
        model.x, model.y, model.blocks, model.hyperparameters, believed=believed, ceiling=ceiling
    )


@pytest.fixture(scope="module")
def pool_points(cloud) -> torch.Tensor:
    # Also the observed points themselves, and one that is very near to one of them.
    return torch.from_numpy(np.vstack([cloud, cloud[:1] + 1e-9]))


# --- the likelihood -------------------------------------------------------------------------


def hyperparameters(blocks: int) -> st.SearchStrategy[Hyperparameters]:
    length = 2 * blocks + blocks + 2 if blocks > 1 else 3
    vector = st.lists(st.floats(-2.5, 1.5), min_size=length, max_size=length)
    constant = st.floats(-2, 2)
    return st.builds(lambda v, c: Hyperparameters.unpack(np.append(v, c), blocks), vector, constant)


@ALL
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_likelihood_is_gpytorchs(cloud, blocks, data):
    x, y = observed(cloud)
    distances = apart(x, blocks)
    h = data.draw(hyperparameters(len(distances)))
    value, _ = log_posterior(h, distances, y, sizes(blocks))
    assert value == pytest.approx(gpytorch_value(x, y, blocks, h), abs=1e-4, rel=1e-6)


@ALL
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_gradient_is_the_slope(cloud, blocks, data):
    x, y = observed(cloud)
    distances = apart(x, blocks)
    h = data.draw(hyperparameters(len(distances)))

    def value(vector: np.ndarray) -> float:
        at = Hyperparameters.unpack(vector, len(distances))
        return log_posterior(at, distances, y, sizes(blocks))[0]

    at, step = h.pack(), 1e-5
    _, gradient = log_posterior(h, distances, y, sizes(blocks))
    slopes = [(value(at + step * e) - value(at - step * e)) / (2 * step) for e in np.eye(len(at))]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@given(data=st.data())
def test_packing_is_undone(blocks, data):
    h = data.draw(hyperparameters(blocks))
    again = Hyperparameters.unpack(h.pack(), blocks)
    np.testing.assert_allclose(again.pack(), h.pack(), atol=1e-12)
    assert len(again.own) == blocks
    assert len(again.variances) == (blocks + 1 if blocks > 1 else 1)


# --- the fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [12, 60, 230])
def test_the_fit_is_no_worse_than_botorchs(n):
    x = np.random.default_rng(n).uniform(size=(n, 4))
    y = warp_targets(smooth(x), "rank_normal")
    model = SingleTaskGP(
        torch.from_numpy(x),
        torch.from_numpy(y).unsqueeze(-1),
        covar_module=gpytorch_kernel(TWO).double(),
        outcome_transform=None,
    )
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(mll)
    model.train()
    best = mll(model(*model.train_inputs), model.train_targets).item()
    found, _ = fit_hyperparameters(x, y, TWO)
    assert gpytorch_value(x, y, TWO, found) / n > best - 0.02


def test_a_long_fit_looks_at_all_observations_few_times(monkeypatch):
    looks = []

    def counted(h, distances, y, dimensions):
        looks.append(len(y))
        return log_posterior(h, distances, y, dimensions)

    monkeypatch.setattr(fitting, "log_posterior", counted)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        x = generator.uniform(size=(400, 4))
        x[:200] *= 0.3  # a search looks elsewhere at first
        y = warp_targets(smooth(x) + 0.02 * generator.normal(size=400), "winsorized")
        found, _ = fit_hyperparameters(x, y, TWO)
        with monkeypatch.context() as one_stage:
            one_stage.setattr(fitting, "log_posterior", log_posterior)
            one_stage.setattr(fitting, "_steps", lambda _: [1])
            whole, _ = fit_hyperparameters(x, y, TWO)
        ends = [gpytorch_value(x, y, TWO, h) for h in (found, whole)]
        assert ends[0] > ends[1] - 0.01 * len(y)
    assert list(dict.fromkeys(looks)) == [100, 200, 400]
    assert looks.count(400) < 45  # 33 of three fits; 59 by way of the first half


def test_a_fit_depends_on_its_arguments_alone(cloud):
    x, y = observed(cloud, 120)
    first, second = (fit_hyperparameters(x, y, TWO)[0].pack() for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-1.0, 1.0]], ids=str)
def test_a_fit_of_hardly_anything(values):
    x = np.zeros((len(values), 4))
    found, failure = fit_hyperparameters(x, np.array(values), TWO)
    assert failure == ""
    assert np.isfinite(found.pack()).all()


@pytest.mark.parametrize("failure", ["raises", "is not finite"])
def test_a_fit_that_fails_keeps_the_priors(monkeypatch, cloud, failure):
    def failing(*_):
        if failure == "raises":
            raise torch.linalg.LinAlgError("no decomposition")
        return float("nan"), np.zeros(8)

    monkeypatch.setattr(fitting, "log_posterior", failing)
    x, y = cloud[:5], np.arange(5.0)
    found, note = fit_hyperparameters(x, y, TWO)
    assert note == ("no decomposition" if failure == "raises" else "the likelihood is not finite")
    np.testing.assert_array_equal(found.pack(), Hyperparameters.of_priors(sizes(TWO)).pack())
    embedding = Embedding(cloud, TWO, np.ones(120, dtype=bool))
    proposal = Searcher().propose(embedding, Observations(np.arange(5), y), number=5)
    assert proposal.by == "acquisition"
    assert proposal.note == f"the surrogate kept its priors: {note}"


# --- predictions ----------------------------------------------------------------------------


def test_a_kernel_of_two_blocks_is_their_sum_and_product(cloud):
    model = fit(cloud, TWO)
    a = torch.from_numpy(cloud[:5])
    near = a.clone()
    near[:, 2:] += 1e3  # nothing in common in the second block
    variances = model.hyperparameters.variances
    assert model.covariance(a[:1], near[:1]).item() == pytest.approx(variances[0], rel=1e-6)
    assert model.covariance(a[:1], a[:1]).item() == pytest.approx(variances.sum(), rel=1e-9)


def test_mean_and_variance_are_botorchs(fitted, pool_points):
    expected = fitted.botorch_model().posterior(pool_points)
    for model in (fitted, conditioned(fitted, pool_points[:0])):
        mean, variance = model.mean_and_variance(pool_points)
        torch.testing.assert_close(mean, expected.mean.squeeze(-1), rtol=0, atol=1e-6)
        torch.testing.assert_close(variance, expected.variance.squeeze(-1), rtol=0, atol=1e-6)
    assert float(expected.variance.detach().max()) > 1e-2
    posterior = fitted.posterior(pool_points.unsqueeze(1))
    assert posterior.mean.shape == posterior.variance.shape == (121, 1, 1)
    torch.testing.assert_close(posterior.mean.squeeze(-1), expected.mean, rtol=0, atol=1e-6)


def test_joint_predictions_are_botorchs(fitted, pool_points):
    expected = fitted.botorch_model().posterior(pool_points).distribution
    mean, covariance = fitted.joint(pool_points)
    torch.testing.assert_close(mean, expected.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(covariance, expected.covariance_matrix, rtol=0, atol=1e-6)


def test_contributions_add_up_to_the_mean(fitted, pool_points):
    parts = fitted.contributions(pool_points)
    names = list(fitted.blocks)
    assert list(parts) == ["prior", *names, *(["together"] if len(names) > 1 else [])]
    mean, _ = fitted.mean_and_variance(pool_points)
    torch.testing.assert_close(sum(parts.values()), mean, rtol=0, atol=1e-9)
    for name, part in parts.items():
        assert len(set(part.tolist())) > 1 or name == "prior"


def test_pending_points_are_believed_as_botorch_would(fitted, pool_points):
    waiting = pool_points[PENDING]
    oracle = fitted.botorch_model()
    believed = oracle.posterior(waiting).mean.detach()
    expected = oracle.condition_on_observations(waiting, believed).posterior(pool_points)
    mean, variance = conditioned(fitted, waiting).mean_and_variance(pool_points)
    torch.testing.assert_close(mean, expected.mean.squeeze(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance, expected.variance.squeeze(-1), rtol=0, atol=1e-6)
    before_mean, before = fitted.mean_and_variance(pool_points)
    torch.testing.assert_close(mean, before_mean, rtol=0, atol=1e-6)
    assert (variance <= before + 1e-9).all()
    assert (variance[PENDING] < 0.5 * before[PENDING]).all()


def test_a_ceiling_holds_down_what_is_believed(fitted, pool_points):
    stopped = pool_points[PENDING]
    free, _ = fitted.mean_and_variance(stopped)
    ceiling = torch.full((len(stopped),), torch.inf, dtype=torch.float64)
    ceiling[0] = free[0] - 1.0
    believed = torch.minimum(free, ceiling)
    oracle = fitted.botorch_model()
    oracle.posterior(stopped)  # BoTorch conditions only what has predicted before
    expected = oracle.condition_on_observations(stopped, believed.unsqueeze(-1))
    mean, variance = conditioned(fitted, stopped, ceiling).mean_and_variance(pool_points)
    torch.testing.assert_close(
        mean, expected.posterior(pool_points).mean.detach().squeeze(-1), rtol=0, atol=1e-6
    )
    _, as_pending = conditioned(fitted, stopped).mean_and_variance(pool_points)
    torch.testing.assert_close(variance, as_pending, rtol=0, atol=1e-9)
    assert mean[PENDING][0] < free[0] - 0.5


def test_the_surrogate_learns(fitted, cloud):
    mean, _ = fitted.mean_and_variance(torch.from_numpy(cloud[15:]))
    assert np.corrcoef(rankdata(mean.numpy()), rankdata(smooth(cloud[15:])))[0, 1] > 0.5
