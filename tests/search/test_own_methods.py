"""Methods of your own: BoTorch's models and acquisition functions, embeddings, strategies."""

from __future__ import annotations

import inspect
from functools import partial
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from botorch import acquisition as of_botorch
from botorch.acquisition.thompson_sampling import PathwiseThompsonSampling
from botorch.models import SingleTaskGP
from botorch.models.ensemble import EnsembleModel
from botorch.models.fully_bayesian import SaasFullyBayesianSingleTaskGP
from botorch.models.robust_relevance_pursuit_model import RobustRelevancePursuitSingleTaskGP
from botorch.models.transforms import Log, Normalize, Warp
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.kernels import Kernel, LinearKernel, MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from made_up import BLOCKS, CLOUD, smooth
from optuna.distributions import FloatDistribution
from sklearn.decomposition import PCA
from torch import nn

from bo_act import ActivationSampler, SurrogateSpec, load_space, why
from bo_act.errors import SearchError
from bo_act.search.acquisition.own import OwnAcquisition
from bo_act.search.configurations import Configurations, Parameters
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.exact import is_exact
from bo_act.search.surrogate.factory import fit_points
from bo_act.search.surrogate.own import BoTorchSurrogate, OwnSurrogate
from bo_act.specs import AcquisitionSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = [
    pytest.mark.filterwarnings("ignore::botorch.exceptions.warnings.BotorchWarning"),
    pytest.mark.filterwarnings("ignore::gpytorch.utils.warnings.GPInputWarning"),
    pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning"),
]

VALUES = smooth(CLOUD)


# --- surrogates -----------------------------------------------------------------------------


def plain(train_X, train_Y):
    return SingleTaskGP(train_X, train_Y)


def known_noise(train_X, train_Y, train_Yvar):
    return SingleTaskGP(train_X, train_Y, train_Yvar)


def own_kernel(train_X, train_Y, blocks):
    first = MaternKernel(nu=1.5, active_dims=tuple(range(*blocks["outputs"].indices(4))))
    return SingleTaskGP(train_X, train_Y, covar_module=ScaleKernel(first) + LinearKernel())


def warped_inputs(train_X, train_Y):
    bounds = torch.tensor([[0.0] * 4, [1.0] * 4], dtype=torch.float64)
    return SingleTaskGP(train_X, train_Y, input_transform=Warp(4, [0, 1, 2, 3], bounds=bounds))


def robust(train_X, train_Y):
    return RobustRelevancePursuitSingleTaskGP(train_X, train_Y)


def fully_bayesian(train_X, train_Y):
    """Three samples of the hyperparameters, as NUTS would give them."""
    pytest.importorskip("numpyro")
    model = SaasFullyBayesianSingleTaskGP(train_X, train_Y)
    model.load_mcmc_samples({
        "lengthscale": torch.rand(3, 1, 4, dtype=torch.float64),
        "outputscale": torch.ones(3, dtype=torch.float64),
        "mean": torch.zeros(3, dtype=torch.float64),
        "noise": torch.full((3, 1), 0.01, dtype=torch.float64),
    })  # fmt: skip
    return model


class Deep(Kernel):
    """A kernel of what a network makes of the points."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.inner = MaternKernel(nu=2.5)

    def forward(self, x1, x2, **options):
        return self.inner.forward(self.network(x1), self.network(x2), **options)


def deep(train_X, train_Y):
    return SingleTaskGP(train_X, train_Y, covar_module=Deep())


class Ensemble(EnsembleModel):
    """Linear fits to halves of the observations, which answer by samples alone."""

    num_outputs = 1

    def __init__(self, train_X, train_Y):
        super().__init__()
        ones = torch.cat([train_X, torch.ones_like(train_Y)], dim=1)
        some = [torch.arange(start, len(ones), 2) for start in (0, 1)] + [torch.arange(len(ones))]
        self.weights = torch.stack([torch.linalg.lstsq(ones[i], train_Y[i]).solution for i in some])

    def forward(self, X):
        ones = torch.cat([X, torch.ones_like(X[..., :1])], dim=-1)
        return ones.unsqueeze(-3) @ self.weights


MODELS = {
    "plain": plain,
    "known noise": known_noise,
    "own kernel": own_kernel,
    "warped inputs": warped_inputs,
    "robust": robust,
    "fully Bayesian": fully_bayesian,
    "deep kernel": deep,
    "ensemble": Ensemble,
}


def observed(count: int = 12) -> Observations:
    indices = np.random.default_rng(3).choice(len(CLOUD), size=count, replace=False)
    return Observations(indices, VALUES[indices], frozenset({5}))


EMBEDDING = Embedding(CLOUD.copy(), BLOCKS, np.ones(len(CLOUD), dtype=bool))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("acquisition", ["log_ei", "max_value_entropy", "ucb"])
def test_every_model_of_botorch_proposes(name, acquisition):
    surrogate = OwnSurrogate(MODELS[name], noise=0.01)
    searcher = Searcher(surrogate=surrogate, acquisition=AcquisitionSpec(name=acquisition))
    one, again = (
        searcher.propose(EMBEDDING, observed(), pending={7, 8}, number=20) for _ in range(2)
    )
    assert one == again
    assert one.by == "acquisition"
    assert one.index not in {*observed().indices.tolist(), 5, 7, 8}
    assert np.isfinite([one.mean, one.deviation, one.expected]).all()
    assert one.deviation > 0


def test_predictions_are_those_of_the_model():
    x, y = torch.from_numpy(CLOUD[:10]), torch.from_numpy(VALUES[:10])
    model = SingleTaskGP(x, y.unsqueeze(-1)).eval()
    points = torch.from_numpy(CLOUD[10:50])
    mean, variance = BoTorchSurrogate(model, "m").mean_and_variance(points)
    expected = model.posterior(points.unsqueeze(1))
    torch.testing.assert_close(mean, expected.mean.detach().flatten())
    torch.testing.assert_close(variance, expected.variance.detach().flatten())


def standardized_inputs(train_X, train_Y):
    return SingleTaskGP(train_X, 50 * train_Y + 7, input_transform=Normalize(4))


def logarithms(train_X, train_Y):
    return SingleTaskGP(train_X, train_Y - train_Y.min() + 1, outcome_transform=Log())


def linear(train_X, train_Y):
    return SingleTaskGP(train_X, train_Y, covar_module=ScaleKernel(LinearKernel()))


def batch(train_X, train_Y):
    return SingleTaskGP(train_X.expand(2, -1, -1), train_Y.expand(2, -1, -1))


class Shifted(SingleTaskGP):
    """A model whose posterior is its own."""

    def posterior(self, X, *arguments, **options):
        return super().posterior(X + 0.1, *arguments, **options)


EXACT = ("plain", "known noise", "own kernel", "warped inputs", "deep kernel")


@pytest.mark.parametrize("make", [*(MODELS[name] for name in EXACT), standardized_inputs])
def test_an_exact_process_is_asked_by_one_cholesky_factor(make):
    x, y = torch.from_numpy(CLOUD[:30]), torch.from_numpy(VALUES[:30, None])
    given = {"train_X": x, "train_Y": y, "train_Yvar": torch.linspace(0.01, 0.1, 30)[:, None].to(y)}
    wanted = {name: given.get(name, BLOCKS) for name in inspect.signature(make).parameters}
    model = make(**wanted).eval()
    points = torch.from_numpy(CLOUD)
    for _ in range(2):  # as it is made, and fitted
        expected = model.posterior(points.unsqueeze(1))
        assert is_exact(model)
        mean, variance = BoTorchSurrogate(model, "m").mean_and_variance(points)
        scale = float(expected.variance.detach().max())
        torch.testing.assert_close(
            mean, expected.mean.detach().flatten(), rtol=0, atol=1e-8 * scale**0.5
        )
        torch.testing.assert_close(
            variance, expected.variance.detach().flatten(), rtol=0, atol=1e-8 * scale
        )
        mll = ExactMarginalLogLikelihood(model.likelihood, model)
        fit_gpytorch_mll_scipy(mll.train(), options={"maxiter": 20})
        mll.eval()


@pytest.mark.parametrize("make", [logarithms, linear, batch, Shifted, robust, Ensemble])
def test_any_other_model_is_asked_itself(make):
    x, y = torch.from_numpy(CLOUD[:12]), torch.from_numpy(VALUES[:12, None])
    assert not is_exact(make(x, y))


def test_a_posterior_without_moments_is_sampled():
    class Samples:
        def rsample(self, shape):
            return 3.0 + 2.0 * torch.randn(*shape, 4, 1, dtype=torch.float64)

    class Sampled(SingleTaskGP):
        def posterior(self, X, *_, **__):
            return Samples()

    x, y = torch.from_numpy(CLOUD[:10]), torch.from_numpy(VALUES[:10, None])
    surrogate = BoTorchSurrogate(Sampled(x, y), "m")
    mean, variance = surrogate.mean_and_variance(x[:4])
    np.testing.assert_allclose(mean, 3.0, atol=0.6)
    np.testing.assert_allclose(variance, 4.0, atol=1.5)
    torch.testing.assert_close(mean, surrogate.mean_and_variance(x[:4])[0])


def test_a_pending_point_is_taken_at_its_prediction():
    seen = []

    def make_model(train_X, train_Y):
        seen.append((train_X, train_Y))
        return SingleTaskGP(train_X, train_Y)

    pending, pruned = torch.from_numpy(CLOUD[60:62]), torch.from_numpy(CLOUD[70:71])
    x = torch.from_numpy(CLOUD[:10])
    options = {"pending": pending, "pruned": pruned, "seed": 0}
    fit_points(OwnSurrogate(make_model), x, VALUES[:10], BLOCKS, **options)
    (first, _), (second, targets) = seen
    assert (len(first), len(second)) == (10, 13)
    torch.testing.assert_close(second[10:], torch.cat([pending, pruned]))
    assert float(targets[12]) <= float(targets[:10].median())  # a pruned one is none of the best
    seen.clear()
    model, _, _ = fit_points(
        OwnSurrogate(make_model), x, VALUES[:10], BLOCKS, believe=False, **options
    )
    assert len(seen[1][0]) == 11  # acquisition functions of one's own are told what is pending
    torch.testing.assert_close(model.pending, pending)
    torch.testing.assert_close(model.observed, x)


# --- acquisition functions ------------------------------------------------------------------


ACQUISITIONS = {
    getattr(make, "func", make).__name__: make
    for make in (
        of_botorch.ExpectedImprovement,
        of_botorch.LogExpectedImprovement,
        of_botorch.ProbabilityOfImprovement,
        partial(of_botorch.UpperConfidenceBound, beta=4.0),
        of_botorch.PosteriorMean,
        of_botorch.PosteriorStandardDeviation,
        of_botorch.qExpectedImprovement,
        of_botorch.qLogExpectedImprovement,
        of_botorch.qNoisyExpectedImprovement,
        of_botorch.qLogNoisyExpectedImprovement,
        of_botorch.qProbabilityOfImprovement,
        partial(of_botorch.qUpperConfidenceBound, beta=4.0),
        of_botorch.qSimpleRegret,
        of_botorch.qPosteriorStandardDeviation,
        of_botorch.qMaxValueEntropy,
        of_botorch.qLowerBoundMaxValueEntropy,
        PathwiseThompsonSampling,
    )
}
"""What BoTorch offers over a pool; a class is as good as a function that makes one."""


@pytest.mark.parametrize("surrogate", [SurrogateSpec(), OwnSurrogate(plain)], ids=["gp", "own"])
@pytest.mark.parametrize("name", ACQUISITIONS)
def test_every_acquisition_function_of_botorch_chooses(surrogate, name):
    searcher = Searcher(surrogate=surrogate, acquisition=OwnAcquisition(ACQUISITIONS[name], name))
    if name == "PathwiseThompsonSampling" and isinstance(surrogate, SurrogateSpec):
        with pytest.raises(SearchError, match="gen_kernel_features: <BlockKernel"):
            searcher.propose(EMBEDDING, observed(), number=20)  # acquisition.name = "thompson" can
        return
    one, again = (
        searcher.propose(EMBEDDING, observed(), pending={7, 8}, number=20) for _ in range(2)
    )
    assert one == again
    assert one.by == "acquisition"
    assert one.index not in {*observed().indices.tolist(), 5, 7, 8}


def test_pending_configurations_are_told_to_an_acquisition_function():
    """Of several activations and parameters as of functions alone."""
    told = []

    def make_acquisition(model, X_baseline, X_pending):
        told.append((len(X_baseline), X_pending))
        return of_botorch.qLogNoisyExpectedImprovement(model, X_baseline, X_pending=X_pending)

    rate = Parameters({"rate": FloatDistribution(0.0, 1.0)})
    settings = np.linspace(0, 1, len(observed()))[:, None]
    measured = Configurations(observed().indices[:, None], settings)
    waiting = Configurations(np.array([[7], [8]]), np.array([[0.25], [0.5]]))
    searcher = Searcher(acquisition=OwnAcquisition(make_acquisition), parameters=rate, initial=0)
    proposal = searcher.propose(
        EMBEDDING, Observations(measured, observed().values), pending=waiting, number=20
    )
    assert proposal.by == "acquisition"
    ((count, pending),) = told
    assert count == len(observed())
    expected = np.column_stack([EMBEDDING.points[[7, 8]], [0.25, 0.5]])
    np.testing.assert_allclose(pending.numpy(), expected)


def test_a_batch_tells_an_acquisition_function_what_it_has_so_far():
    """As BoTorch's sequential greedy optimization does."""
    told = []

    def make_acquisition(model, X_baseline, X_pending):
        told.append([] if X_pending is None else X_pending.tolist())
        return of_botorch.qLogNoisyExpectedImprovement(model, X_baseline, X_pending=X_pending)

    searcher = Searcher(acquisition=OwnAcquisition(make_acquisition))
    batch = searcher.propose_batch(EMBEDDING, observed(), 3, number=20)
    places = CLOUD[[proposal.index for proposal in batch]].tolist()
    assert [sorted(one) for one in told] == [sorted(places[:count]) for count in range(3)]
    assert len({proposal.index for proposal in batch}) == 3


def test_a_function_of_your_own_chooses_what_ours_of_the_same_kind_does():
    ours = Searcher(acquisition=AcquisitionSpec(name="log_ei"))
    own = Searcher(acquisition=OwnAcquisition(ACQUISITIONS["LogExpectedImprovement"]))
    for number in range(20, 26):
        some = observed(number)
        assert (
            ours.propose(EMBEDDING, some, number=number).index
            == own.propose(EMBEDDING, some, number=number).index
        )


@pytest.mark.parametrize("name", ["thompson", "log_nei"])
def test_what_looks_at_values_together_works_with_a_model_of_your_own(name):
    searcher = Searcher(surrogate=OwnSurrogate(plain), acquisition=AcquisitionSpec(name=name))
    assert searcher.propose(EMBEDDING, observed(), number=20).by == "acquisition"


# --- errors ---------------------------------------------------------------------------------


def broken(train_X, train_Y):
    raise ZeroDivisionError("no model today")


def predicting_nothing(train_X, train_Y):
    model = SingleTaskGP(train_X, train_Y)
    model.posterior = lambda *_, **__: SimpleNamespace(
        mean=torch.zeros(3, 1), variance=torch.ones(3, 1)
    )
    return model


@pytest.mark.parametrize(
    ("surrogate", "acquisition", "said"),
    [
        (broken, None, r"the surrogate 'broken' fails: ZeroDivisionError: no model today .*line"),
        (lambda: 3, None, r"expected a botorch.models.model.Model, got int"),
        (lambda X: None, None, r"expected a function of some of train_X, .* needs 'X'"),
        (predicting_nothing, None, r"one value at each of \d+ points, got means of shape \(3, 1\)"),
        (plain, lambda model: 3, r"expected a botorch.acquisition.AcquisitionFunction, got int"),
        (plain, lambda modle: 3, r"needs 'modle' \(did you mean 'model'\?\)"),
        (
            plain,
            lambda model: of_botorch.qKnowledgeGradient(model, num_fantasies=2),
            r"fails over the candidates|expected a score for each",
        ),
        (plain, "knowledge_gradient", "needs a joint posterior; choose the surro"),
        ("forest", "thompson", r"needs a joint posterior"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_on_one_line(surrogate, acquisition, said):
    if isinstance(surrogate, str):
        surrogate = SurrogateSpec(name=surrogate)
    else:
        surrogate = OwnSurrogate(surrogate)
    if isinstance(acquisition, str):
        acquisition = AcquisitionSpec(name=acquisition)
    elif acquisition is None:
        acquisition = AcquisitionSpec()
    else:
        acquisition = OwnAcquisition(acquisition)
    searcher = Searcher(surrogate=surrogate, acquisition=acquisition)
    with pytest.raises(SearchError, match=said) as caught:
        searcher.propose(EMBEDDING, observed(), number=20)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"surrogate": 3}, "surrogate: expected a SurrogateSpec, or a function make_model"),
        ({"acquisition": "log_ei"}, "acquisition: expected an AcquisitionSpec, or a function"),
        ({"surrogate": SurrogateSpec(name="a.py:b")}, "from Python, give the function"),
        ({"embedding": lambda table: np.zeros(3)}, r"expected an Embedding or an array \(34, d\)"),
        ({"embedding": lambda table: 1 / 0}, r"the embedding '<lambda>' fails: ZeroDivisionError"),
        ({"embedding": nn.Linear(2, 2)}, r"the embedding 'Linear' fails"),
    ],
)
def test_a_sampler_says_what_it_can_be_given(options, said):
    with pytest.raises(SearchError, match=said):
        ActivationSampler(load_space("classic"), **options)


# --- embeddings and strategies --------------------------------------------------------------


class Net(nn.Module):
    def forward(self, blocks):
        return blocks["moments"][:, :2]


@pytest.mark.parametrize(
    "embedding",
    [PCA(3), Net(), lambda table: table.blocks["moments"].values, lambda table: torch.eye(34)],
    ids=["transformer", "network", "function", "tensor"],
)
def test_an_embedding_of_your_own_is_searched(embedding):
    space = load_space("classic")
    study = optuna.create_study(
        direction="maximize", sampler=ActivationSampler(space, embedding=embedding)
    )
    study.optimize(partial(value, space), n_trials=9)
    texts = [trial.user_attrs["activation"] for trial in study.trials]
    assert len(set(texts)) == 9
    ways = [trial.user_attrs["proposal"]["by"] for trial in study.trials]
    assert ways[-1] == "acquisition"


def value(space, trial) -> float:
    return len(str(space.suggest_expression(trial))) / 100


class Nearest:
    """The candidate that is nearest to the best so far."""

    def choose(self, embedding, observations, candidates, pending):
        assert not set(pending) & set(candidates.tolist())
        best = observations.indices[observations.values.argmax()]
        away = embedding.points[candidates] - embedding.points[best]
        return candidates[(away**2).sum(axis=1).argmin()]


def test_a_strategy_gets_what_it_asks_for():
    searcher = Searcher(strategy=Nearest())
    chosen = searcher.propose(EMBEDDING, observed(), pending={7}, number=20)
    assert chosen.by == "strategy"
    best = observed().indices[observed().values.argmax()]
    taken = [*observed().indices, 5, 7]
    away = ((CLOUD - CLOUD[best]) ** 2).sum(axis=1)
    away[taken] = np.inf
    assert chosen.index == away.argmin()


class Elsewhere:
    def choose(self, candidates):
        return -1


class Greedy:
    def choose(self, points):
        return points


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (Elsewhere(), r"the strategy Elsewhere: expected one of the 107 candidates, got -1"),
        (Greedy(), r"expected a function of some of .* needs 'points'"),
    ],
)
def test_a_strategy_that_chooses_nothing_is_refused(strategy, said):
    with pytest.raises(SearchError, match=said):
        Searcher(strategy=strategy).propose(EMBEDDING, observed(), number=20)


# --- in Optuna ------------------------------------------------------------------------------


def test_why_tells_what_a_model_of_your_own_expected():
    space = load_space("classic")
    sampler = ActivationSampler(space, surrogate=plain)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(partial(value, space), n_trials=8)
    found = why(study, sampler, 7)
    assert found.explanation is not None
    assert found.explanation.low <= found.explanation.predicted <= found.explanation.high
    assert found.explanation.contributions == {}
