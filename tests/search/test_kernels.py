"""Each kernel of the Gaussian process against dense formulas in float64: the contract of all."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import get_args

import numpy as np
import optuna
import pytest
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from gpytorch.kernels import MaternKernel, RBFKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator import to_dense
from made_up import BLOCKS, CLOUD, smooth
from pydantic import ValidationError
from scipy.spatial.distance import cdist

from bo_act import ActivationSampler, load_space
from bo_act.search.acquisition import pool as pools
from bo_act.search.acquisition.pool import score_pool
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.explain import explain
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate import fitting
from bo_act.search.surrogate.exact import is_exact
from bo_act.search.surrogate.fitting import fit, is_written_out
from bo_act.search.surrogate.gaussian_process import GaussianProcess, fit_gaussian_process
from bo_act.search.surrogate.kernel import CORRELATIONS
from bo_act.specs import AcquisitionSpec, SurrogateSpec
from bo_act.study.sampling.recorded import sampler_of

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")

KERNELS = get_args(SurrogateSpec.model_fields["kernel"].annotation)
SEEN = 25
POOL = np.vstack([CLOUD, CLOUD[:1] + 1e-9])
EMBEDDING = Embedding(CLOUD.copy(), BLOCKS, np.ones(len(CLOUD), dtype=bool))
OBSERVED = Observations(np.arange(SEEN), smooth(CLOUD[:SEEN]))
ONE = {"outputs": slice(0, 4)}

# Rasmussen and Williams (2006), eq. 4.9 and 4.17.
FORMULAS = {
    "matern_5_2": lambda r: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-math.sqrt(5) * r),
    "matern_3_2": lambda r: (1 + math.sqrt(3) * r) * np.exp(-math.sqrt(3) * r),
    "matern_1_2": lambda r: np.exp(-r),
    "rbf": lambda r: np.exp(-(r**2) / 2),
}
CASES = list(itertools.product(FORMULAS, (False, True), (ONE, BLOCKS)))
IDS = [
    f"{kernel}{' ard' * ard}, {len(blocks)} block{'s' * (len(blocks) > 1)}"
    for kernel, ard, blocks in CASES
]


def dense(model: GaussianProcess, name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The prior covariance by its formula."""
    blocks, of, total = list(model.blocks.values()), FORMULAS[name], np.zeros((len(a), len(b)))
    for number, term in enumerate(model.covar_module.kernels):
        product = number == len(blocks)
        parts = term.base_kernel.kernels if product else [term.base_kernel]
        covariance = np.full_like(total, term.outputscale.item())
        for part, columns in zip(parts, blocks if product else blocks[number:], strict=False):
            units = part.lengthscale.detach().numpy()[0]
            covariance *= of(cdist(a[:, columns] / units, b[:, columns] / units))
        total += covariance
    return total


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def case(request) -> tuple[GaussianProcess, str, bool]:
    kernel, ard, blocks = request.param
    x, y = CLOUD[:SEEN], warp_targets(smooth(CLOUD[:SEEN]), "rank_normal")
    model, failure = fit_gaussian_process(
        torch.from_numpy(x), torch.from_numpy(y), blocks, kernel=kernel, ard=ard
    )
    assert failure == ""
    return model, kernel, ard


def test_names_are_those_of_study_files():
    assert tuple(CORRELATIONS) == tuple(FORMULAS) == KERNELS
    assert {name: type(one.make()) for name, one in CORRELATIONS.items()} == {
        **dict.fromkeys(KERNELS, MaternKernel),
        "rbf": RBFKernel,
    }


def test_predictions_are_those_of_the_dense_formulas(case):
    model, name, _ = case
    x, points, y = CLOUD[:SEEN], torch.from_numpy(POOL), model.y.numpy()
    noisy = dense(model, name, x, x) + model.noise.item() * np.eye(SEEN)
    cross = dense(model, name, x, POOL)
    expected = model.constant + cross.T @ np.linalg.solve(noisy, y - model.constant)
    covariance = dense(model, name, POOL, POOL) - cross.T @ np.linalg.solve(noisy, cross)
    mean, variance = model.mean_and_variance(points)
    np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-8)
    np.testing.assert_allclose(variance, np.diag(covariance).clip(1e-12), rtol=0, atol=1e-8)
    np.testing.assert_allclose(model.joint(points)[1], covariance, rtol=0, atol=1e-8)
    np.testing.assert_allclose(sum(model.contributions(points).values()), mean, atol=1e-9)
    posterior = model.posterior(points)
    np.testing.assert_allclose(posterior.mean.detach().squeeze(-1), expected, atol=1e-6)
    assert is_exact(model)


def test_the_kernel_is_gpytorchs(case):
    """That of the parts, which GPyTorch evaluates one by one."""
    model, _, _ = case
    a, b = torch.from_numpy(CLOUD[:7]), torch.from_numpy(CLOUD[5:12])
    for batch in ((), (3,)):
        x1, x2 = a.expand(*batch, 7, 4), b.expand(*batch, 7, 4)
        for diag in (False, True):
            found = to_dense(model.covar_module(x1, x2, diag=diag))
            expected = sum(to_dense(term(x1, x2, diag=diag)) for term in model.covar_module.kernels)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_the_fit_is_no_worse_than_botorchs(case):
    model, name, ard = case
    theirs = GaussianProcess(model.x, model.y.unsqueeze(-1), model.blocks, kernel=name, ard=ard)
    assert is_written_out(theirs) == (name == "matern_5_2" and not ard)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(theirs.likelihood, theirs))
    ends = []
    for one in (model, theirs):
        again = GaussianProcess(model.x, model.y.unsqueeze(-1), model.blocks, kernel=name, ard=ard)
        again.load_state_dict(one.state_dict())
        mll = ExactMarginalLogLikelihood(again.likelihood, again)
        ends.append(mll(again.train()(*again.train_inputs), again.train_targets).item())
    assert ends[0] > ends[1] - 0.02


def test_each_column_has_a_length_scale_if_asked(case):
    model, _, ard = case
    width = {columns.stop - columns.start for columns in model.blocks.values()}.pop()
    scales = [factor.lengthscale for factors in model.covar_module.factors for factor in factors]
    assert {tuple(scale.shape) for scale in scales} == {(1, width if ard else 1)}
    if ard:
        assert all(len(set(scale.flatten().tolist())) > 1 for scale in scales)


def test_paths_have_the_moments_of_the_posterior(case):
    model, _, _ = case
    points = torch.from_numpy(CLOUD[SEEN : SEEN + 30])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([model.draw_path(generator)(points) for _ in range(300)])
    mean, variance = model.mean_and_variance(points)
    scale = model.prior_variance**0.5
    np.testing.assert_allclose(drawn.mean(dim=0), mean, atol=0.25 * scale)
    np.testing.assert_allclose(drawn.std(dim=0), variance.sqrt(), atol=0.15 * scale)


@pytest.mark.parametrize("scale", [0.025, 0.2, 3.0])
def test_bounds_hold(case, scale):
    """Also where the least length scale that is fitted magnifies float32's rounding the most."""
    fitted, name, ard = case
    for seed in range(20):
        generator = np.random.default_rng(seed)
        x = generator.uniform(0.5, 1, size=(3, 4))
        # Near what was observed, where the covariance is the steepest.
        steps = generator.normal(size=(200, 3, 4)) * generator.uniform(size=(200, 1, 1))
        points = torch.from_numpy((x + 0.5 * scale * steps).reshape(-1, 4).clip(0, 1))
        y = torch.from_numpy(1 + 0.01 * generator.normal(size=(3, 1)))
        model = GaussianProcess(torch.from_numpy(x), y, fitted.blocks, kernel=name, ard=ard)
        for factors in model.covar_module.factors:
            for factor in factors:
                factor.lengthscale = torch.full_like(factor.lengthscale, 1.001 * scale)
        model.likelihood.noise = 1.1e-4
        mean, variance = model.mean_and_variance(points)
        upper, most = model.upper_bounds(points)
        assert (upper >= mean).all()
        assert (most >= variance).all()


@pytest.mark.parametrize("name", ["ucb", "log_ei"])
def test_screening_leaves_out_none_that_is_best(case, monkeypatch, name):
    model, _, _ = case
    points = torch.from_numpy(np.random.default_rng(2).uniform(size=(4_000, 4)))
    score = partial(score_pool, AcquisitionSpec(name=name), model, points, float(model.y.max()))
    monkeypatch.setattr(pools, "SCREENED", 3_000)
    screened = score()
    monkeypatch.setattr(pools, "SCREENED", 10**9)
    assert int(screened.argmax()) == int(score().argmax())


# --- in a search ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ard"), list(zip(FORMULAS, itertools.cycle((False, True)), strict=False))
)
def test_every_acquisition_function_proposes(name, ard):
    for acquisition in ("max_value_entropy", "log_nei", "thompson", "knowledge_gradient"):
        searcher = Searcher(
            surrogate=SurrogateSpec(kernel=name, ard=ard),
            acquisition=AcquisitionSpec(name=acquisition),
        )
        torch.manual_seed(1)
        one = searcher.propose(EMBEDDING, OBSERVED, pending={40, 41}, number=SEEN)
        torch.manual_seed(2)
        assert one == searcher.propose(EMBEDDING, OBSERVED, pending={40, 41}, number=SEEN)
        assert (one.by, one.note) == ("acquisition", "")


def test_a_kernel_explains_and_says_what_is_left_to_gain():
    usual, other = (Searcher(surrogate=SurrogateSpec(kernel=k)) for k in ("matern_5_2", "rbf"))
    found = [explain(searcher, EMBEDDING, OBSERVED, 30) for searcher in (usual, other)]
    assert list(found[0].contributions) == list(found[1].contributions)
    assert found[0].predicted != found[1].predicted
    gains = [one.expected_improvement(EMBEDDING, OBSERVED) for one in (usual, other)]
    assert gains[0] != gains[1]


def test_a_study_notes_its_kernel():
    space = load_space("classic")
    spec = SurrogateSpec(kernel="rbf", ard=True)
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, surrogate=spec, initial=2)
    )
    study.optimize(lambda trial: len(str(space.suggest_expression(trial))), n_trials=3)
    again, why_not = sampler_of(study)
    assert why_not == ""
    assert again.searcher.surrogate == spec


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [-1.0, 1.0]], ids=str)
def test_a_fit_of_hardly_anything(values):
    for name, ard in itertools.product(FORMULAS, (False, True)):
        x, y = torch.zeros(len(values), 4, dtype=torch.float64), torch.tensor(values).double()
        model = GaussianProcess(x, y.unsqueeze(-1), BLOCKS, kernel=name, ard=ard)
        assert fit(model) == ""
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_a_fit_that_fails_keeps_the_priors(monkeypatch):
    def failing(mll):
        with torch.no_grad():
            for parameter in mll.model.parameters():
                parameter.fill_(7.0)
        raise ModelFittingError("All attempts to fit the model have failed.")

    monkeypatch.setattr(fitting, "fit_gpytorch_mll", failing)
    searcher = Searcher(surrogate=SurrogateSpec(kernel="rbf"))
    found = searcher.fit(EMBEDDING, OBSERVED)
    assert "the surrogate kept its priors: " in found.note
    assert "All attempts to fit the model have failed" in found.note
    fresh = GaussianProcess(found.model.x, found.y.unsqueeze(-1), BLOCKS, kernel="rbf")
    for one, other in zip(found.model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "forest", "kernel": "rbf"}, "leave them out"),
        ({"name": "knn", "ard": True}, "expected kernel and ard with the surrogate 'gp'"),
        ({"name": "a.py:make", "ard": True}, "'a.py:make'"),
        ({"kernel": "matern"}, "matern_5_2"),
    ],
)
def test_what_takes_no_kernel_is_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        SurrogateSpec(**given)
