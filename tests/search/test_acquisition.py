"""Acquisition functions over a pool against BoTorch's own on its own model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import (
    LogExpectedImprovement,
    LogProbabilityOfImprovement,
    PosteriorMean,
    UpperConfidenceBound,
)
from botorch.acquisition.max_value_entropy_search import qLowerBoundMaxValueEntropy
from botorch.optim import optimize_acqf_discrete
from botorch.utils.sampling import manual_seed
from scipy import stats

from bo_act.errors import SearchError
from bo_act.search.acquisition import pool as pools
from bo_act.search.acquisition.pool import score_pool
from bo_act.search.observations import warp_targets
from bo_act.search.surrogate import gaussian_process
from bo_act.search.surrogate.gaussian_process import GaussianProcess, fit_gaussian_process
from bo_act.search.surrogate.sklearn_models import RegressorModel
from bo_act.specs import AcquisitionSpec, SurrogateSpec

pytestmark = pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning")

BLOCKS = {"outputs": slice(0, 2), "fim": slice(2, 4)}
SEEN = 25
NAMES = ("ucb", "log_ei", "log_nei", "log_pi", "max_value_entropy", "thompson", "greedy")


def target(points: np.ndarray) -> np.ndarray:
    return np.sin(4 * points[:, 0]) + points[:, 2] ** 2 + points[:, 1] * points[:, 3]


@pytest.fixture(scope="module")
def points() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(5).uniform(size=(400, 4)))


@pytest.fixture(scope="module")
def model(points) -> GaussianProcess:
    x = points[:SEEN]
    noise = 0.3 * np.random.default_rng(1).normal(size=SEEN)
    y = warp_targets(target(x.numpy()) + noise, "rank_normal")
    return fit_gaussian_process(x, torch.from_numpy(y), BLOCKS)[0]


def score(name: str, model, points, *, seed: int = 0, **options) -> torch.Tensor:
    best = float(model.y.max()) if isinstance(model, GaussianProcess) else 1.0
    return score_pool(AcquisitionSpec(name=name, **options), model, points, best, seed=seed)


def botorchs_own(name: str, model: GaussianProcess, pool: torch.Tensor):
    oracle, best = model, float(model.y.max())
    if name == "log_ei":
        return LogExpectedImprovement(oracle, best_f=best)
    if name == "log_pi":
        return LogProbabilityOfImprovement(oracle, best_f=best)
    if name == "greedy":
        return PosteriorMean(oracle)
    if name == "max_value_entropy":
        with manual_seed(0), torch.no_grad():
            # The pool alone: BoTorch would add the points that its model has seen.
            own = qLowerBoundMaxValueEntropy(oracle, pool, num_mv_samples=32)
            own.candidate_set = pool
        with manual_seed(0), torch.no_grad():
            own._sample_max_values(32)
        return own
    return UpperConfidenceBound(oracle, beta=AcquisitionSpec().beta ** 2)


@pytest.mark.parametrize("name", ["ucb", "log_ei", "log_pi", "greedy", "max_value_entropy"])
def test_scores_are_botorchs(model, points, name):
    pool = points[SEEN:]
    scores = score(name, model, pool)
    oracle = botorchs_own(name, model, pool)
    with torch.no_grad():
        expected = oracle(pool.unsqueeze(1))
    assert scores.shape == (len(pool),)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    # The choice is that of BoTorch's own optimizer over the same points.
    chosen, _ = optimize_acqf_discrete(oracle, q=1, choices=pool)
    assert torch.equal(chosen[0], pool[int(scores.argmax())])


def test_ucb_is_mean_plus_beta_deviations(model, points):
    mean, variance = model.mean_and_variance(points)
    scores = score("ucb", model, points, beta=2.5)
    torch.testing.assert_close(scores, mean + 2.5 * variance.sqrt())


@pytest.mark.parametrize("name", NAMES)
def test_scores_depend_on_the_seed_alone(model, points, name):
    torch.testing.assert_close(score(name, model, points), score(name, model, points))
    random = not torch.equal(score(name, model, points), score(name, model, points, seed=1))
    assert random == (name in ("log_nei", "max_value_entropy", "thompson"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_do_not_matter(model, points, monkeypatch, name, chunk):
    whole = score(name, model, points[:60])
    monkeypatch.setattr(pools, "_CHUNK", chunk)
    torch.testing.assert_close(score(name, model, points[:60]), whole, rtol=1e-9, atol=1e-9)


# --- large pools ----------------------------------------------------------------------------


@pytest.mark.parametrize("few", [1, 5, 64])
def test_bounds_hold(model, points, monkeypatch, few):
    monkeypatch.setattr(gaussian_process, "_FEW", few)
    fresh = GaussianProcess(model.x, model.y.unsqueeze(-1), BLOCKS)
    fresh.load_state_dict(model.state_dict())
    mean, variance = fresh.mean_and_variance(points)
    upper, most = fresh.upper_bounds(points)
    assert (upper >= mean).all()
    assert (most >= variance).all()
    assert float((upper - mean).max()) < 0.05
    if few == 64:  # all observations: little is lost but the noise that steadies it
        assert float((most - variance).mean()) < 0.05


@pytest.mark.parametrize("name", ["ucb", "log_ei"])
def test_screening_leaves_out_none_that_is_best(model, monkeypatch, name):
    pool = torch.from_numpy(np.random.default_rng(2).uniform(size=(30_000, 4)))
    assert len(pool) >= pools.SCREENED
    screened = score(name, model, pool)
    monkeypatch.setattr(pools, "SCREENED", 10**9)
    whole = score(name, model, pool)
    assert int(screened.argmax()) == int(whole.argmax())
    kept = torch.isfinite(screened)
    torch.testing.assert_close(screened[kept], whole[kept])
    assert kept.sum() < 10_000


@pytest.mark.parametrize("name", ["max_value_entropy", "log_pi", "thompson", "log_nei", "greedy"])
def test_the_promising_ones_of_a_large_pool_are_scored(model, monkeypatch, name):
    pool = torch.from_numpy(np.random.default_rng(2).uniform(size=(2_000, 4)))
    whole = score(name, model, pool)
    monkeypatch.setattr(pools, "SCREENED", 1_000)
    monkeypatch.setattr(pools, "_PROMISING", 500)
    some = score(name, model, pool)
    assert int(torch.isfinite(some).sum()) == 500
    # The choice is no worse than what scoring all of them would have chosen.
    chosen = int(some.argmax())
    if name == "thompson":  # another draw, of fewer points
        mean, variance = model.mean_and_variance(pool)
        assert (mean + 3 * variance.sqrt())[chosen] >= model.y.max()
    else:
        assert (whole > whole[chosen]).sum() <= 2


# --- functions that draw --------------------------------------------------------------------


def test_paths_have_the_posteriors_mean_and_covariance(model, points):
    some = points[20:32]
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([model.draw_path(generator)(some) for _ in range(1500)])
    mean, covariance = model.joint(some)
    scale = covariance.diagonal().sqrt()
    # Four standard errors of 1,500 draws, and a little for the features.
    assert ((draws.mean(dim=0) - mean).abs() < 4 * scale / 1500**0.5 + 0.02).all()
    torch.testing.assert_close(draws.T.cov(), covariance, rtol=0.15, atol=0.05)


def test_a_path_is_one_function(model, points):
    path = model.draw_path(torch.Generator().manual_seed(3))
    torch.testing.assert_close(path(points)[7:20], path(points[7:20]), rtol=1e-9, atol=1e-9)


def test_thompson_sampling_chooses_by_the_chance_of_being_best(model, points):
    pool = points[SEEN : SEEN + 8]
    wins = np.zeros(8)
    for seed in range(600):
        wins[int(score("thompson", model, pool, seed=seed).argmax())] += 1
    mean, covariance = model.joint(pool)
    draws = np.random.default_rng(0).multivariate_normal(
        mean.numpy(), covariance.numpy(), size=20_000
    )
    expected = np.bincount(draws.argmax(axis=1), minlength=8) / 20_000
    np.testing.assert_allclose(wins / 600, expected, atol=0.07)


def test_noisy_improvement_is_its_definition(model, points):
    pool = points[score("log_ei", model, points).argsort()[-12:]]
    scores = score("log_nei", model, pool)
    seen = len(model.x)
    mean, covariance = model.joint(torch.cat([model.x, pool]))
    # Plain Monte Carlo over values at the observed points and the candidates together.
    draws = np.random.default_rng(0).multivariate_normal(
        mean.numpy(), covariance.numpy(), size=40_000
    )
    gain = np.maximum(draws[:, seen:] - draws[:, :seen].max(axis=1, keepdims=True), 0.0)
    expected = gain.mean(axis=0)
    # 64 draws at the observed points: the order and the size, not every digit.
    assert stats.spearmanr(scores, expected).statistic > 0.9
    large = expected > 0.01
    assert large.sum() >= 3
    np.testing.assert_allclose(scores.exp().numpy()[large], expected[large], rtol=0.5)


def test_without_noise_it_is_the_expected_improvement(points):
    x = points[:SEEN]
    y = warp_targets(target(x.numpy()), "rank_normal")
    quiet, _ = fit_gaussian_process(x, torch.from_numpy(y), BLOCKS)
    quiet.load_state_dict({
        **quiet.state_dict(),
        "likelihood.noise_covar.raw_noise": torch.tensor([1e-6]).log(),
    })  # fmt: skip
    noisy, plain = (score(name, quiet, points[SEEN:]) for name in ("log_nei", "log_ei"))
    assert int(noisy.argmax()) == int(plain.argmax())
    assert stats.spearmanr(noisy, plain).statistic > 0.98


@pytest.mark.parametrize("name", ["thompson", "log_nei", "knowledge_gradient"])
def test_what_looks_at_several_values_needs_a_gaussian_process(points, name):
    forest = RegressorModel(
        SurrogateSpec(name="forest"),
        points[:5],
        points[:5, 0],
        believed=points[:0],
        ceiling=points[:0, 0],
        seed=0,
    )
    with pytest.raises(SearchError, match="choose the surrogate 'gp'"):
        score(name, forest, points)
