"""Strategies, surrogates and methods by name: one contract for all that can choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import optuna
import pytest
import torch
from benchmarks_of_tests import random_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import GPSampler, RandomSampler, TPESampler
from sklearn.ensemble import RandomForestRegressor

from bo_act.benchmark.table import Benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, replay
from bo_act.errors import SearchError
from bo_act.features.compute import compute_features
from bo_act.features.table import FeatureTable
from bo_act.search.acquisition.pool import score_pool
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.embedding.factory import make_embedder
from bo_act.search.method import METHODS, MethodSpec
from bo_act.search.observations import Observations, warp_targets
from bo_act.search.searcher import Searcher
from bo_act.search.strategies import Evolution, RandomSearch
from bo_act.search.surrogate.sklearn_models import RegressorModel
from bo_act.spaces.space import Space, load_space
from bo_act.specs import (
    AcquisitionSpec,
    EmbeddingSpec,
    SpaceSpec,
    StrategySpec,
    StudySpec,
    SurrogateSpec,
)
from bo_act.study.sampling.methods import make_method_sampler, make_strategy

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPEC = SpaceSpec(
    name="small",
    schemas=("binary(unary(x),unary(x))", "unary(unary(x))"),
    expressions=("max(x,mul(x,x))",),
    unary=("tanh", "relu", "sigmoid", "erf", "softplus", "abs"),
    binary=("add", "mul", "max"),
    baselines=("relu(tanh(x))",),
)


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(SPEC)


@pytest.fixture(scope="module")
def table(space) -> FeatureTable:
    return compute_features(space)


@pytest.fixture(scope="module")
def embedding(space, table) -> Embedding:
    fitted = make_embedder(EmbeddingSpec()).fit(table)
    among = np.ones(len(space.catalogue), dtype=bool)
    among[[3, 10]] = False
    return fitted.restricted(among)


def quality(embedding: Embedding) -> np.ndarray:
    points = np.where(embedding.valid[:, None], embedding.points, 0.0)
    return np.asarray(1 - ((points[:, :3] - 0.3) ** 2).sum(axis=1))


# --- the contract of all that choose --------------------------------------------------------

SEARCHERS: dict[str, Callable[[Space], Searcher]] = {
    name: (
        lambda space, method=method: Searcher(
            initial=0,
            surrogate=method.surrogate,
            acquisition=method.acquisition,
            costs=np.linspace(1.0, 9.0, len(space.catalogue)),
            strategy=make_strategy(method.strategy, space),
            seed=5,
        )
    )
    for name, method in {
        **{n: m for n, m in METHODS.items() if m.optuna is None},
        "knn_ucb": MethodSpec(surrogate=SurrogateSpec(name="knn")),
    }.items()
}


@pytest.fixture(scope="module", params=SEARCHERS)
def searcher(request, space) -> Searcher:
    return SEARCHERS[request.param](space)


@settings(max_examples=6)
@given(data=st.data())
def test_what_is_taken_is_never_proposed(searcher, embedding, data):
    count = len(embedding)
    order = data.draw(st.permutations(range(count)))
    seen = data.draw(st.integers(0, 12))
    rest = order[seen:]
    values = np.array(data.draw(st.lists(st.integers(0, 4), min_size=seen, max_size=seen)))
    observations = Observations(
        np.array(order[:seen], dtype=np.int64),
        values.astype(float),
        pruned=frozenset(rest[:3]),
        closed=frozenset(rest[3:5]),
    )
    proposal = searcher.propose(embedding, observations, pending=rest[5:9], number=seen)
    assert proposal.index in rest[9:]
    assert embedding.valid[proposal.index]
    again = searcher.propose(embedding, observations, pending=rest[5:9], number=seen)
    assert proposal == again


def test_the_whole_space_is_walked_through_once(searcher, embedding):
    values = quality(embedding)
    indices: list[int] = []
    free = np.flatnonzero(embedding.valid)
    # From near the end: all of it would be a hundred fits.
    indices.extend(int(i) for i in free[:-4])
    for number in range(len(indices), len(free)):
        observations = Observations(np.array(indices), values[indices])
        indices.append(searcher.propose(embedding, observations, number=number).index)
    assert sorted(indices) == free.tolist()
    with pytest.raises(SearchError, match="nothing left to propose"):
        searcher.propose(embedding, Observations(np.array(indices), values[indices]), number=999)


def test_other_seeds_choose_otherwise_where_chance_decides(space, embedding):
    observations = Observations(np.arange(12), np.arange(12) / 12)
    for name in ("random", "evolution"):
        searcher = SEARCHERS[name](space)
        chosen = {
            searcher.propose(embedding, observations, number=number).index
            for number in range(12, 40)
        }
        assert len(chosen) > 5


def test_ties_are_broken_at_random(embedding):
    """Three neighbours give whole regions one mean."""
    searcher = Searcher(
        initial=0, surrogate=SurrogateSpec(name="knn"), acquisition=AcquisitionSpec(name="greedy")
    )
    observations = Observations(np.arange(4, 8), np.array([0.0, 1.0, 1.0, 1.0]))
    chosen = {searcher.propose(embedding, observations, number=n).index for n in range(10)}
    assert len(chosen) > 3


# --- evolution ------------------------------------------------------------------------------


def test_a_child_differs_from_the_best_of_the_living_in_one_slot(space):
    catalogue = space.catalogue
    evolution = Evolution(space, population=4, tournament=4)
    parent = catalogue.index("add(tanh(x),relu(x))")
    others = [i for i in range(30) if i != parent][:9]
    # The very best of all is dead; the parent is the best of the living.
    indices = np.array([*others[:6], parent, *others[6:]])
    values = np.array([9.0, 1, 1, 1, 1, 1, 3.0, 2, 2, 2])
    candidates = np.setdiff1d(np.arange(len(catalogue)), indices)
    of_parent = catalogue.params(parent)
    neighbours = {
        catalogue.index({**of_parent, slot: choice})
        for slot in of_parent
        if slot != "schema"
        for choice in space.distributions[slot].choices
    }
    # Another shape is a mutation, too: those of one operator less, and the single expression.
    reshaped = {
        catalogue.index(str(expression))
        for expression in space
        if not str(expression).startswith(SPEC.binary) or expression in space.named_expressions
    }
    children = {
        evolution.choose(Observations(indices, values), candidates, np.random.default_rng(seed))
        for seed in range(60)
    }
    assert children <= (neighbours | reshaped) & set(candidates.tolist())
    assert children & (neighbours - reshaped)
    assert children & (reshaped - neighbours)


def test_a_small_tournament_lets_others_be_parents(space):
    evolution = Evolution(space, population=10, tournament=1)
    observations = Observations(np.arange(10), np.arange(10.0))
    candidates = np.arange(10, len(space.catalogue))
    children = {
        evolution.choose(observations, candidates, np.random.default_rng(seed))
        for seed in range(40)
    }
    strict = Evolution(space, population=10, tournament=10)
    of_best = {
        strict.choose(observations, candidates, np.random.default_rng(seed)) for seed in range(40)
    }
    assert len(children) > len(of_best)


def test_evolution_finds_good_functions_sooner_than_chance(act_bench):
    """Where one operator's change keeps much of a value, as in real tables."""
    catalogue = act_bench.catalogue
    parts = [catalogue.params(index) for index in range(len(catalogue))]
    generator = np.random.default_rng(0)
    worth = {
        slot: dict(zip(d.choices, generator.random(len(d.choices)), strict=True))
        for slot, d in act_bench.distributions.items()
    }
    values = np.array([sum(worth[s][c] for s, c in params.items()) for params in parts])
    embedding = Embedding(
        np.zeros((len(values), 1)), {"none": slice(0, 1)}, np.ones(len(values), dtype=bool)
    )

    def best(strategy, seed: int) -> float:
        searcher = Searcher(strategy=strategy, initial=5, seed=seed)
        indices: list[int] = []
        for number in range(60):
            observations = Observations(np.array(indices, dtype=int), values[indices])
            indices.append(searcher.propose(embedding, observations, number=number).index)
        return float(values[indices].max())

    evolved = [best(Evolution(act_bench), seed) for seed in range(8)]
    drawn = [best(RandomSearch(), seed) for seed in range(8)]
    assert np.mean(evolved) > np.mean(drawn) + np.std(drawn) / 2


# --- surrogates -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen() -> tuple[torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(1)
    x = generator.random((30, 4))
    return torch.from_numpy(x), torch.from_numpy(np.sin(3 * x[:, 0]) + x[:, 1])


def fitted(name: str, x, y, *, believed=None, ceiling=None, seed: int = 0) -> RegressorModel:
    believed = x[:0] if believed is None else believed
    ceiling = torch.full((len(believed),), torch.inf) if ceiling is None else ceiling
    spec = SurrogateSpec(name=name, trees=40)
    return RegressorModel(spec, x, y, believed=believed, ceiling=ceiling, seed=seed)


def test_nearest_neighbours_are_a_plain_loop(seen):
    x, y = seen
    points = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = fitted("knn", x, y).mean_and_variance(points)
    for point, got in zip(points, mean, strict=True):
        distances = [(float(((point - place) ** 2).sum()), i) for i, place in enumerate(x)]
        nearest = [i for _, i in sorted(distances)[:3]]
        assert float(got) == pytest.approx(sum(float(y[i]) for i in nearest) / 3)
    assert (variance == 1e-10).all()


def test_a_forest_is_the_mean_and_spread_of_its_trees(seen):
    x, y = seen
    points = torch.rand(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, variance = fitted("forest", x, y, seed=7).mean_and_variance(points)
    forest = RandomForestRegressor(40, random_state=7).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(mean, forest.predict(points.numpy()), rtol=1e-12)
    for row in range(50):
        votes = [tree.predict(points[[row]].numpy())[0] for tree in forest.estimators_]
        assert float(variance[row]) == pytest.approx(np.var(votes), abs=1e-9)
    truth = torch.sin(3 * points[:, 0]) + points[:, 1]
    assert np.corrcoef(mean.numpy(), truth.numpy())[0, 1] > 0.6


@pytest.mark.parametrize("name", ["knn", "forest"])
def test_believed_points_count_as_seen(seen, name):
    x, y = seen
    waiting = torch.tensor([[0.9, 0.9, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    free = fitted(name, x, y)
    value, _ = free.mean_and_variance(waiting)
    ceiling = torch.tensor([torch.inf, float(value[1]) - 1.0], dtype=torch.float64)
    believing = fitted(name, x, y, believed=waiting, ceiling=ceiling)
    told = torch.minimum(value, ceiling)
    oracle = fitted(name, torch.cat([x, waiting]), torch.cat([y, told]))
    points = torch.rand(20, 4, dtype=torch.float64)
    for got, expected in zip(
        believing.mean_and_variance(points), oracle.mean_and_variance(points), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
    assert float(believing.mean_and_variance(waiting[1:])[0]) < float(value[1])


@pytest.mark.parametrize("name", ["knn", "forest"])
@pytest.mark.parametrize("acquisition", ["ucb", "log_ei", "log_pi", "max_value_entropy", "greedy"])
def test_every_acquisition_works_on_every_surrogate(seen, name, acquisition):
    model = fitted(name, *seen)
    points = torch.rand(3000, 4, dtype=torch.float64)
    scores = score_pool(AcquisitionSpec(name=acquisition), model, points, 1.0)
    assert scores.shape == (3000,)
    assert torch.isfinite(scores).all()
    if acquisition == "greedy":
        np.testing.assert_array_equal(scores, model.mean_and_variance(points)[0])


def test_fewer_observations_than_neighbours(seen):
    x, y = seen
    mean, _ = fitted("knn", x[:2], y[:2]).mean_and_variance(x[:5])
    np.testing.assert_allclose(mean, float(y[:2].mean()))


# --- methods by name ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return random_benchmark(load_space("classic"))


def test_default_is_what_a_study_does_when_its_file_says_nothing():
    study = StudySpec.model_validate(
        {"name": "s", "model": {"name": "mlp"}, "data": {"name": "digits"}}
    )
    default = METHODS["default"]
    assert default.optuna is None
    for part in ("strategy", "embedding", "surrogate", "acquisition"):
        assert getattr(default, part) == getattr(study, part)
    assert default.fim == study.features.fim


@pytest.mark.parametrize("name", METHODS)
def test_every_method_searches_a_benchmark(benchmark, name):
    method = METHODS[name]
    embedding = None if method.optuna else embed(benchmark, method)
    design = initial_design(benchmark, seed=1, initial=2)
    evaluations = len(design) + 4

    def run() -> list[int]:
        costs = np.linspace(1.0, 9.0, len(benchmark.space.catalogue))
        sampler = make_method_sampler(method, benchmark.space, embedding, costs=costs, seed=1)
        return [s.index for s in replay(benchmark, sampler, evaluations=evaluations, design=design)]

    first = run()
    assert first[: len(design)] == design
    assert first == run()
    if method.optuna is None:
        assert len(set(first)) == evaluations
        assert embedding.valid[first[len(design) :]].all()


def test_optunas_methods_are_optunas(benchmark):
    for name, kind in {
        "optuna_random": RandomSampler,
        "tpe": TPESampler,
        "gpsampler": GPSampler,
    }.items():
        assert type(make_method_sampler(METHODS[name], benchmark.space, None, seed=0)) is kind
    with pytest.raises(SearchError, match="expected an embedding"):
        make_method_sampler(METHODS["random"], benchmark.space, None, seed=0)


def test_the_design_is_all_that_tpe_and_gpsampler_draw_at_random(benchmark):
    """With ten trials enqueued, the eleventh is the sampler's own."""
    for name in ("tpe", "gpsampler"):
        sampler = make_method_sampler(METHODS[name], benchmark.space, None, seed=0)
        assert sampler._n_startup_trials == 10


def test_proposals_are_made_from_targets_as_the_method_says(benchmark):
    """Three neighbours, mean, argmax: the published choice, by hand."""
    method = METHODS["published"]
    embedding = embed(benchmark, method)
    valid = np.flatnonzero(embedding.valid)
    seen = valid[:6]
    values = benchmark.values[seen]
    searcher = SEARCHERS["published"](benchmark.space)
    proposal = searcher.propose(embedding, Observations(seen, values), number=6)
    means = {}
    for index in valid[6:]:
        distance = np.linalg.norm(embedding.points[seen] - embedding.points[index], axis=1)
        means[int(index)] = warp_targets(values, "standardized")[np.argsort(distance)[:3]].mean()
    assert means[proposal.index] == pytest.approx(max(means.values()))


def test_strategies_by_spec(space):
    assert make_strategy(StrategySpec(), space) is None
    assert isinstance(make_strategy(StrategySpec(name="random"), space), RandomSearch)
    evolution = make_strategy(StrategySpec(name="evolution", population=7, tournament=2), space)
    assert evolution == Evolution(space, population=7, tournament=2)
