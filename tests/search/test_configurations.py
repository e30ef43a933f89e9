"""Configurations: functions for several places and other parameters, searched together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, smooth
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from bo_act.errors import ExhaustedError
from bo_act.search.acquisition.pool import make_scorer, score_pool
from bo_act.search.configurations import Configurations, Parameters, Taken
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.search.surrogate.factory import fit_points
from bo_act.specs import AcquisitionSpec, SurrogateSpec

MIXED = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "depth": IntDistribution(2, 8, step=3),
    "kind": CategoricalDistribution(("a", "b", "c")),
    "dropout": FloatDistribution(0.0, 0.5, step=0.1),
    "fixed": IntDistribution(3, 3),
}
RATE = {"rate": FloatDistribution(0.0, 1.0)}


# --- parameters -----------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1))
def test_every_drawn_point_is_one_that_is_allowed(seed):
    parameters = Parameters(MIXED)
    generator = np.random.default_rng(seed)
    points = parameters.draw(16, generator)
    near = parameters.near(points[3], 16, generator)
    for point in [*points, *near]:
        values = parameters.decode(point)
        assert set(values) == {"rate", "depth", "kind", "dropout"}
        for name, value in values.items():
            assert MIXED[name]._contains(MIXED[name].to_internal_repr(value)), (name, value)
        np.testing.assert_allclose(parameters.encode(values), point, atol=1e-9)
        assert (point >= 0).all()
        assert (point <= 1).all()


def test_coordinates_of_parameters():
    parameters = Parameters(MIXED)
    assert parameters.width == 1 + 1 + 3 + 1
    values = {"rate": 0.01, "depth": 5, "kind": "b", "dropout": 0.0}
    place = parameters.encode(values)
    assert place[parameters.blocks["rate"]] == pytest.approx([0.5])
    assert place[parameters.blocks["kind"]] == pytest.approx([0, 1 / np.sqrt(2), 0])
    other = parameters.encode(values | {"kind": "c"})
    assert np.linalg.norm(place - other) == pytest.approx(1)  # as far as the ends of a range
    beyond = parameters.encode(values | {"rate": 10.0})
    assert beyond[parameters.blocks["rate"]] == [1.0]
    with pytest.raises(ValueError, match="z"):
        parameters.encode(values | {"kind": "z"})


def test_draws_are_spread_and_steps_are_near():
    parameters = Parameters(RATE)
    drawn = parameters.draw(64, np.random.default_rng(0))[:, 0]
    assert np.diff(np.sort(np.append(drawn, [0, 1]))).max() < 3 / 64
    near = parameters.near(np.array([0.5]), 64, np.random.default_rng(0))[:, 0]
    assert np.median(abs(near - 0.5)) < 0.15
    assert (abs(near - 0.5) > 0.15).any()


def test_no_parameters_are_no_coordinates():
    none = Parameters({"fixed": MIXED["fixed"]})
    assert none.width == 0
    assert none.draw(3, np.random.default_rng(0)).shape == (3, 0)
    assert none.decode(none.encode({})) == {}


# --- the searcher ---------------------------------------------------------------------------


def cloud(count: int = 120) -> Embedding:
    valid = np.ones(count, dtype=bool)
    valid[7] = False
    return Embedding(np.where(valid[:, None], CLOUD[:count], np.nan), BLOCKS, valid)


def value(functions: np.ndarray, settings: np.ndarray) -> np.ndarray:
    """Depends on both, and the best rate on the function."""
    quality = smooth(CLOUD[functions[:, 0]])
    wanted = 0.2 + 0.6 * CLOUD[functions[:, 0], 0]
    return quality - 6 * (settings[:, 0] - wanted) ** 2


def none_yet(places: int, width: int) -> Configurations:
    return Configurations(np.empty((0, places), dtype=np.int64), np.empty((0, width)))


def search(searcher: Searcher, trials: int, objective=value):
    done = none_yet(len(searcher.activations), searcher.parameters.width)
    ways = []
    for number in range(trials):
        observations = Observations(done, objective(done.functions, done.settings))
        proposal = searcher.propose(cloud(), observations, number=number)
        done = Configurations.join(done, proposal.configuration)
        ways.append(proposal.by)
    return done, ways


def test_function_and_rate_are_found_together():
    everything = max(
        value(np.array([[i]]), np.array([[0.2 + 0.6 * CLOUD[i, 0]]]))[0]
        for i in range(120)
        if i != 7
    )
    gaps = []
    for baselines in [(3, 4), (5, 6), (10, 11)]:
        searcher = Searcher(baselines, parameters=Parameters(RATE))
        done, ways = search(searcher, 25)
        assert ways == ["baseline"] * 2 + ["random"] * 2 + ["acquisition"] * 21
        assert 7 not in done.functions  # it has no place
        gaps.append(everything - value(done.functions, done.settings).max())
    assert np.median(gaps) < 0.02  # one search can stay at the second best function
    again, _ = search(searcher, 10)
    np.testing.assert_array_equal(done.settings[:10], again.settings)
    np.testing.assert_array_equal(done.functions[:10], again.functions)


def test_baselines_have_the_same_settings():
    parameters = Parameters(RATE)
    searcher = Searcher((3, 4), parameters=parameters)
    told = replace(searcher, defaults=np.array([0.25]))
    assert search(told, 2)[0].settings.tolist() == [[0.25], [0.25]]
    drawn = search(searcher, 2)[0].settings
    assert drawn[0, 0] == drawn[1, 0]


def test_two_activations_are_chosen_together():
    def both(functions: np.ndarray, settings: np.ndarray) -> np.ndarray:
        del settings
        first, second = smooth(CLOUD[functions[:, 0]]), smooth(CLOUD[functions[:, 1]])
        # The second is wanted small where the first is large: no place is best on its own.
        return first - second

    searcher = Searcher((3,), activations=("stage1", "stage2"))
    done, _ = search(searcher, 35, both)
    assert done.functions[0].tolist() == [3, 3]
    quality = np.delete(smooth(CLOUD), 7)
    reached = both(done.functions, done.settings).max()
    assert reached > 0.9 * np.ptp(quality)
    assert len({tuple(row) for row in done.functions.tolist()}) == 35


def test_the_climb_finds_what_an_exhaustive_search_finds():
    parameters = Parameters({"kind": CategoricalDistribution(("a", "b", "c"))})
    places = np.array([parameters.encode({"kind": kind}) for kind in "abc"])
    generator = np.random.default_rng(1)
    functions = generator.choice(np.delete(np.arange(120), 7), size=(20, 1))
    settings = places[generator.integers(3, size=20)]
    values = smooth(CLOUD[functions[:, 0]]) + settings[:, 1]
    spec = AcquisitionSpec(name="ucb", beta=2.0)
    searcher = Searcher(parameters=parameters, initial=0, acquisition=spec)
    observations = Observations(Configurations(functions, settings), values)
    proposal = searcher.propose(cloud(), observations, number=0)
    # All configurations, one by one.
    tried = {(int(f), tuple(s)) for (f,), s in zip(functions, settings, strict=True)}
    every = [
        (i, kind)
        for i in range(120)
        for kind in range(3)
        if i != 7 and (i, tuple(places[kind])) not in tried
    ]
    points = torch.tensor(np.array([[*CLOUD[i], *places[kind]] for i, kind in every]))
    x = torch.tensor(np.column_stack([CLOUD[functions[:, 0]], settings]))
    blocks = {**BLOCKS, "kind": slice(4, 7)}
    model, y, _ = fit_points(SurrogateSpec(), x, values, blocks, seed=0)
    scores = score_pool(spec, model, points, float(y.max()))
    index, kind = every[int(scores.argmax())]
    assert proposal.functions == (index,)
    assert proposal.settings == tuple(places[kind])
    assert proposal.score == pytest.approx(float(scores.max()), abs=1e-9)


@pytest.mark.parametrize("name", ["max_value_entropy", "ucb", "log_ei", "log_nei", "thompson"])
def test_scores_of_different_calls_compare(name):
    x = torch.from_numpy(CLOUD[:25].copy())
    model, y, _ = fit_points(SurrogateSpec(), x, smooth(CLOUD[:25]), BLOCKS, seed=0)
    points = torch.from_numpy(CLOUD[25:].copy())
    spec = AcquisitionSpec(name=name)
    with torch.no_grad():
        score = make_scorer(spec, model, float(y.max()), pool=points, seed=5)
        whole = score(points)
        parts = torch.cat([score(points[:1]), score(points[1:40]), score(points[40:])])
        listed = score_pool(spec, model, points, float(y.max()), seed=5)
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(listed, whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("initial", [0, 100])
def test_each_configuration_that_is_left_is_proposed_once(initial):
    """8 functions of 2 kinds each, 2 given up, 2 seen: then nothing is left."""
    parameters = Parameters({"kind": CategoricalDistribution(("a", "b"))})
    assert parameters.count == 2
    embedding = cloud(9)
    seen = Configurations(np.array([[0], [1]]), parameters.draw(2, np.random.default_rng(0)))
    observations = Observations(seen, np.array([0.0, 1.0]), closed={2, 3})
    searcher = Searcher(parameters=parameters, initial=initial)
    pending = none_yet(1, 2)
    for number in range(10):
        proposal = searcher.propose(embedding, observations, pending=pending, number=number)
        assert proposal.by == ("random" if initial else "acquisition")
        pending = Configurations.join(pending, proposal.configuration)
    rows = [(f[0], *s) for f, s in zip(pending.functions, pending.settings, strict=True)]
    assert len(set(rows)) == 10
    assert not {2, 3, 7} & {row[0] for row in rows}
    with pytest.raises(ExhaustedError, match="all configurations were tried"):
        searcher.propose(embedding, observations, pending=pending, number=10)


def test_what_is_taken():
    known = Configurations(np.array([[1, 2], [1, 2], [3, 3]]), np.array([[0.1], [0.2], [0.1]]))
    taken = Taken(known, {(2, 1)})
    some = Configurations(
        np.array([[1, 2], [1, 2], [2, 1], [2, 1], [3, 1]]),
        np.array([[0.1 + 1e-12], [0.3], [0.1], [0.9], [0.1]]),
    )
    assert taken.among(some).tolist() == [True, False, True, True, False]
    assert taken.count([]) == 4
    assert taken.count([(1, 2)]) == 2
    assert not Taken(known[:0], ()).among(some).any()


def test_a_function_alone_is_a_configuration():
    """One activation and no parameters: what is said by indices, and by configurations."""
    indices = np.arange(12)
    values = smooth(CLOUD[:12])
    plain = Observations(indices, values, pruned={40, 30}, closed={50})
    whole = Observations(
        Configurations.of(indices), values, Configurations.of([30, 40, 30]), {(50,)}
    )
    waiting = Configurations.of([61, 60, 61])
    searcher = Searcher(activations=("",), parameters=Parameters({}))
    found = searcher.propose(cloud(), whole, pending=waiting, number=3)
    assert found == Searcher().propose(cloud(), plain, pending={60, 61}, number=3)
    assert found.settings == ()
    assert found.score is not None


def test_a_batch_of_configurations():
    searcher = Searcher(parameters=Parameters(RATE), activations=("a", "b"), initial=0)
    generator = np.random.default_rng(0)
    done = Configurations(generator.integers(6, size=(8, 2)), generator.uniform(size=(8, 1)))
    observations = Observations(done, value(done.functions, done.settings))
    batch = searcher.propose_batch(cloud(), observations, 3, number=8)
    assert len({(p.functions, p.settings) for p in batch}) == 3
    waiting = Configurations.join(*(p.configuration for p in batch[:2]))
    assert batch[2] == searcher.propose(cloud(), observations, pending=waiting, number=10)
