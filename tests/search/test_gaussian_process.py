"""The Gaussian process against BoTorch's and GPyTorch's own, in numbers, slope and predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.optim import optimize_acqf
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import AdditiveKernel, Kernel, MaternKernel, ProductKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior, NormalPrior
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_operator import to_dense
from made_up import BLOCKS, CLOUD, smooth
from scipy.stats import rankdata

from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate import fitting
from bo_act.search.surrogate.fitting import Loss, fit, is_written_out, loss_closure
from bo_act.search.surrogate.gaussian_process import GaussianProcess, fit_gaussian_process
from bo_act.search.surrogate.kernel import BlockKernel, matern52

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")

TWO = BLOCKS
ONE = {"outputs": slice(0, 4)}
THREE = {"outputs": slice(0, 1), "fim": slice(1, 3), "other": slice(3, 4)}
ALL = pytest.mark.parametrize("blocks", [ONE, TWO, THREE], ids=["one", "two", "three"])
PENDING = slice(40, 44)


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


def plain_model(x: np.ndarray, y: np.ndarray, blocks: dict[str, slice]) -> SingleTaskGP:
    """BoTorch's model with that kernel, evaluated and fitted by GPyTorch alone."""
    return SingleTaskGP(
        torch.from_numpy(x),
        torch.from_numpy(y).unsqueeze(-1),
        covar_module=gpytorch_kernel(blocks).double(),
        outcome_transform=None,
    )


def as_plain(model: GaussianProcess) -> SingleTaskGP:
    """The same hyperparameters and observations in BoTorch's own model."""
    plain = plain_model(model.x.numpy(), model.y.numpy(), model.blocks)
    for ours, theirs in zip(model.covar_module.kernels, plain.covar_module.kernels, strict=True):
        theirs.outputscale = ours.outputscale.detach()
    factors = [factor for factors in model.covar_module.factors for factor in factors]
    others = [part for part in plain.covar_module.modules() if isinstance(part, MaternKernel)]
    for ours, theirs in zip(factors, others, strict=True):
        theirs.lengthscale = ours.lengthscale.detach()
    plain.likelihood.noise = model.noise
    plain.mean_module.constant = model.constant
    return plain.eval()


def log_posterior(model: SingleTaskGP) -> torch.Tensor:
    """Log marginal likelihood and log priors an observation, by GPyTorch."""
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    model.train()
    return mll(model(*model.train_inputs), model.train_targets)


@pytest.fixture(scope="module")
def cloud() -> np.ndarray:
    return CLOUD.copy()


def observed(cloud: np.ndarray, n: int = 15) -> tuple[np.ndarray, np.ndarray]:
    return cloud[:n], warp_targets(smooth(cloud[:n]), "rank_normal")


@pytest.fixture(scope="module", params=[ONE, TWO, THREE], ids=["one", "two", "three"])
def fitted(request, cloud) -> GaussianProcess:
    return fitted_to(cloud, request.param)


def fitted_to(cloud: np.ndarray, blocks: dict[str, slice]) -> GaussianProcess:
    x, y = observed(cloud)
    model, failure = fit_gaussian_process(torch.from_numpy(x), torch.from_numpy(y), blocks)
    assert failure == ""
    return model


def unfitted(x: np.ndarray, y: np.ndarray, blocks: dict[str, slice]) -> GaussianProcess:
    return GaussianProcess(torch.from_numpy(x), torch.from_numpy(y).unsqueeze(-1), blocks)


def conditioned(
    model: GaussianProcess, believed: torch.Tensor, ceiling: torch.Tensor | None = None
) -> GaussianProcess:
    again = GaussianProcess(model.x, model.y.unsqueeze(-1), model.blocks)
    again.load_state_dict(model.state_dict())
    again.believe(believed, ceiling)
    return again


@pytest.fixture(scope="module")
def pool_points(cloud) -> torch.Tensor:
    # Also the observed points themselves, and one that is very near to one of them.
    return torch.from_numpy(np.vstack([cloud, cloud[:1] + 1e-9]))


# --- the likelihood -------------------------------------------------------------------------


def anywhere(data, cloud: np.ndarray, blocks: dict[str, slice]) -> GaussianProcess:
    """A model with hyperparameters drawn by hypothesis."""
    model = unfitted(*observed(cloud), blocks)
    parameters = list(model.parameters())
    numbers = st.lists(st.floats(-2.5, 1.5), min_size=len(parameters), max_size=len(parameters))
    with torch.no_grad():
        for parameter, number in zip(parameters, data.draw(numbers), strict=True):
            parameter.fill_(number)
    return model


@ALL
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_likelihood_is_gpytorchs(cloud, blocks, data):
    model = anywhere(data, cloud, blocks)
    value, _ = loss_closure(model)()
    for theirs in (model, as_plain(model)):
        assert -value.item() == pytest.approx(log_posterior(theirs).item(), abs=1e-5, rel=1e-6)


@ALL
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_the_gradient_is_what_automatic_differentiation_finds(cloud, blocks, data):
    model = anywhere(data, cloud, blocks)
    assert is_written_out(model)
    _, gradient = loss_closure(model)()
    log_posterior(model).backward()
    for parameter, slope in zip(model.parameters(), gradient, strict=True):
        torch.testing.assert_close(slope, -parameter.grad, rtol=1e-6, atol=1e-8)


# --- the fit --------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [12, 60, 230])
def test_the_fit_is_no_worse_than_botorchs(n):
    x = np.random.default_rng(n).uniform(size=(n, 4))
    y = warp_targets(smooth(x), "rank_normal")
    plain = plain_model(x, y, TWO)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(plain.likelihood, plain))
    best = log_posterior(plain).item()
    model = unfitted(x, y, TWO)
    assert fit(model) == ""
    assert log_posterior(as_plain(model)).item() > best - 0.02


def test_botorch_fits_it_by_the_gradient_written_out(cloud):
    ours, theirs, written = (unfitted(*observed(cloud), TWO) for _ in range(3))
    fit(ours)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(theirs.likelihood, theirs))
    mll = ExactMarginalLogLikelihood(written.likelihood, written)
    fit_gpytorch_mll(mll, closure=loss_closure(written))
    values = [log_posterior(model).item() for model in (ours, theirs, written)]
    np.testing.assert_allclose(values, values[0], atol=5e-3)
    assert values[1] == pytest.approx(values[2], abs=1e-6)


def test_another_model_is_fitted_by_botorch(cloud):
    ours, theirs = (plain_model(*observed(cloud), TWO) for _ in range(2))
    assert not is_written_out(ours)
    assert fit(ours) == ""
    fit_gpytorch_mll(ExactMarginalLogLikelihood(theirs.likelihood, theirs))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_with_other_priors_is_not_written_out(cloud):
    model = unfitted(*observed(cloud), TWO)
    model.mean_module.register_prior("mean_prior", NormalPrior(0.0, 1.0), "constant")
    assert not is_written_out(model)
    model = unfitted(*observed(cloud), TWO)
    model.covar_module.kernels[0].register_prior(
        "outputscale_prior", LogNormalPrior(0.0, 1.0), lambda m: m.outputscale
    )
    assert not is_written_out(model)


def test_a_long_fit_looks_at_all_observations_few_times(monkeypatch):
    looks = []

    class Counted(Loss):
        def at(self, vector):
            looks.append(len(self.y))
            return super().at(vector)

    monkeypatch.setattr(fitting, "Loss", Counted)
    for seed in range(3):
        generator = np.random.default_rng(seed)
        x = generator.uniform(size=(400, 4))
        x[:200] *= 0.3  # a search looks elsewhere at first
        y = warp_targets(smooth(x) + 0.02 * generator.normal(size=400), "winsorized")
        found, whole = unfitted(x, y, TWO), unfitted(x, y, TWO)
        fit(found)
        with monkeypatch.context() as one_stage:
            one_stage.setattr(fitting, "Loss", Loss)
            one_stage.setattr(fitting, "_steps", lambda _: [1])
            fit(whole)
        ends = [log_posterior(model).item() for model in (found, whole)]
        assert ends[0] > ends[1] - 0.01
    assert list(dict.fromkeys(looks)) == [100, 200, 400]
    assert looks.count(400) < 45  # 33 of three fits; 59 by way of the first half


def test_a_fit_depends_on_its_arguments_alone(cloud):
    first, second = (unfitted(*observed(cloud, 120), TWO) for _ in range(2))
    fit(first)
    fit(second)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-1.0, 1.0]], ids=str)
def test_a_fit_of_hardly_anything(values):
    model = unfitted(np.zeros((len(values), 4)), np.array(values), TWO)
    assert fit(model) == ""
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("failure", ["raises", "is not finite"])
def test_a_fit_that_fails_keeps_the_priors(monkeypatch, cloud, failure):
    def failing(*_):
        if failure == "raises":
            raise torch.linalg.LinAlgError("no decomposition")
        return torch.full((5, 5), torch.nan, dtype=torch.float64)

    x, y = cloud[:5], np.arange(5.0)
    model = unfitted(x, y, TWO)
    with monkeypatch.context() as broken:
        broken.setattr(torch.linalg, "cholesky", failing)
        note = fit(model)
        embedding = Embedding(cloud, TWO, np.ones(120, dtype=bool))
        proposal = Searcher().propose(embedding, Observations(np.arange(5), y), number=5)
    assert note == ("no decomposition" if failure == "raises" else "the likelihood is not finite")
    for parameter, start in zip(model.parameters(), unfitted(x, y, TWO).parameters(), strict=True):
        assert torch.equal(parameter, start)
    assert proposal.by == "acquisition"
    assert proposal.note == f"the surrogate kept its priors: {note}"


def test_priors_start_where_they_are_most_likely(cloud):
    model = unfitted(*observed(cloud), TWO)
    assert model.likelihood.noise.item() == pytest.approx(np.exp(-5))
    first, _, both = model.covar_module.kernels
    assert first.outputscale.item() == pytest.approx(2 / 3)
    mode = np.exp(np.sqrt(2) + 0.5 * np.log(2) - 3)
    assert first.base_kernel.lengthscale.item() == pytest.approx(mode)
    assert both.base_kernel.kernels[1].lengthscale.item() == pytest.approx(mode)


# --- a model of BoTorch ---------------------------------------------------------------------


@ALL
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one", "batch"])
def test_the_kernel_is_gpytorchs(cloud, blocks, batch):
    ours, theirs = BlockKernel(blocks), gpytorch_kernel(blocks).double()
    values = torch.from_numpy(np.random.default_rng(0).uniform(0.3, 2, size=20))
    for one, other in zip(ours.factors, theirs.kernels, strict=True):
        base = other.base_kernel
        for number, factor in enumerate(one):
            twin = base.kernels[number] if isinstance(base, ProductKernel) else base
            factor.lengthscale = twin.lengthscale = values[number]
    for one, other in zip(ours.kernels, theirs.kernels, strict=True):
        one.outputscale = other.outputscale = values[5]
    a, b = torch.from_numpy(cloud[:7]), torch.from_numpy(cloud[5:12])
    a, b = a.expand(*batch, 7, 4), b.expand(*batch, 7, 4)
    for options in ({}, {"diag": True}):
        for first, second in ((a, b), (a, a)):
            found, expected = (
                to_dense(kernel(first, second, **options)) for kernel in (ours, theirs)
            )
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(ours(a, diag=True), theirs(a, diag=True))


def test_near_points_keep_their_distance():
    kernel = BlockKernel(ONE)
    a = torch.rand(40, 4, dtype=torch.float64)
    gap = 1e-7
    b = a + torch.tensor([gap, 0, 0, 0], dtype=torch.float64)
    found = kernel.terms(a, b)[0].diagonal() / kernel.kernels[0].outputscale
    scaled = torch.tensor(gap, dtype=torch.float64) / kernel.factors[0][0].lengthscale.squeeze()
    expected = matern52(scaled.detach().clone())
    torch.testing.assert_close(found.detach(), expected.expand(40), rtol=0, atol=1e-15)


def test_hyperparameters_have_gpytorchs_names(cloud):
    model = fitted_to(cloud, TWO)
    names = {name for name, _, _ in model.named_parameters_and_constraints()}
    assert {
        "likelihood.noise_covar.raw_noise",
        "mean_module.raw_constant",
        "covar_module.kernels.0.base_kernel.raw_lengthscale",
        "covar_module.kernels.2.base_kernel.kernels.1.raw_lengthscale",
        "covar_module.kernels.2.raw_outputscale",
    } <= names
    assert len(list(model.named_priors())) == 8


def test_a_state_restores_the_model(fitted, pool_points):
    again = GaussianProcess(fitted.x, fitted.y.unsqueeze(-1), fitted.blocks)
    before, _ = again.mean_and_variance(pool_points)
    again.load_state_dict(fitted.state_dict())
    for found, expected in zip(
        again.mean_and_variance(pool_points), fitted.mean_and_variance(pool_points), strict=True
    ):
        assert torch.equal(found, expected)
    assert not torch.equal(before, found)


def test_predictions_follow_what_the_model_is_given(fitted, pool_points):
    model = conditioned(fitted, pool_points[:0])
    model.mean_and_variance(pool_points)
    model.upper_bounds(pool_points)
    model.set_train_data(model.x[:9], model.y[:9], strict=False)
    mean, variance = model.mean_and_variance(pool_points)
    expected = as_plain(model).posterior(pool_points)
    torch.testing.assert_close(mean, expected.mean.detach().squeeze(-1), rtol=0, atol=1e-6)
    assert (model.upper_bounds(pool_points)[1] >= variance).all()
    fit(model)
    mean, _ = model.mean_and_variance(pool_points)
    expected = as_plain(model).posterior(pool_points)
    torch.testing.assert_close(mean, expected.mean.detach().squeeze(-1), rtol=0, atol=1e-6)


def test_a_conditioned_copy_predicts_from_its_own_observations(fitted, pool_points):
    before, _ = fitted.mean_and_variance(pool_points)
    fitted.posterior(pool_points)  # BoTorch conditions only what has predicted before
    value = torch.full((1, 1), 3.0, dtype=torch.float64)
    other = fitted.condition_on_observations(pool_points[60:61], value)
    mean, _ = other.mean_and_variance(pool_points)
    expected = other.posterior(pool_points).mean.detach().squeeze(-1)
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-6)
    assert torch.equal(before, fitted.mean_and_variance(pool_points)[0])
    assert float((mean - before).abs().max()) > 0.5


def test_botorch_optimizes_over_the_cube(fitted):
    acquisition = LogExpectedImprovement(fitted, best_f=float(fitted.y.max()))
    bounds = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    torch.manual_seed(0)
    best, value = optimize_acqf(acquisition, bounds, q=1, num_restarts=2, raw_samples=16)
    step = torch.full((1, 4), 1e-3, dtype=torch.float64)
    assert value >= acquisition((best - step).clamp(0, 1)) - 1e-9
    assert value >= acquisition((best + step).clamp(0, 1)) - 1e-9


# --- predictions ----------------------------------------------------------------------------


def test_a_kernel_of_two_blocks_is_their_sum_and_product(cloud):
    model = fitted_to(cloud, TWO)
    a = torch.from_numpy(cloud[:5])
    near = a.clone()
    near[:, 2:] += 1e3  # nothing in common in the second block
    variances = [term.outputscale.item() for term in model.covar_module.kernels]
    assert model.covariance(a[:1], near[:1]).item() == pytest.approx(variances[0], rel=1e-6)
    assert model.covariance(a[:1], a[:1]).item() == pytest.approx(sum(variances), rel=1e-9)


def test_mean_and_variance_are_botorchs(fitted, pool_points):
    expected = as_plain(fitted).posterior(pool_points)
    own = fitted.posterior(pool_points)
    torch.testing.assert_close(own.mean, expected.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(own.variance, expected.variance, rtol=0, atol=1e-6)
    for model in (fitted, conditioned(fitted, pool_points[:0])):
        mean, variance = model.mean_and_variance(pool_points)
        torch.testing.assert_close(mean, expected.mean.squeeze(-1), rtol=0, atol=1e-6)
        torch.testing.assert_close(variance, expected.variance.squeeze(-1), rtol=0, atol=1e-6)
    assert float(expected.variance.detach().max()) > 1e-2
    posterior = fitted.posterior(pool_points.unsqueeze(1))
    assert posterior.mean.shape == posterior.variance.shape == (121, 1, 1)
    torch.testing.assert_close(posterior.mean.squeeze(-1), expected.mean, rtol=0, atol=1e-6)


def test_joint_predictions_are_botorchs(fitted, pool_points):
    expected = as_plain(fitted).posterior(pool_points).distribution
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
    oracle = as_plain(fitted)
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
    oracle = as_plain(fitted)
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
