"""What functions cost: times of operators, gains by second, and cost as an objective."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from hypothesis import given
from hypothesis import strategies as st
from made_up import BLOCKS, CLOUD, TASK, smooth
from optuna.distributions import FloatDistribution
from pydantic import ValidationError

from bo_act.activations.expressions import parse
from bo_act.activations.operators import OPERATORS
from bo_act.comparison.replay import replay
from bo_act.errors import SearchError
from bo_act.search.acquisition.cost import (
    expected_hypervolume_improvement,
    per_second_of,
    predicted_seconds,
)
from bo_act.search.acquisition.pool import PoolMarginals, score_pool
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations
from bo_act.search.searcher import Searcher
from bo_act.spaces.costs import cost, costs_of, operator_times
from bo_act.spaces.space import load_space
from bo_act.specs import AcquisitionSpec
from bo_act.specs.files import read_study
from bo_act.statistics import pareto_front
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.storage.opening import load_study

optuna.logging.set_verbosity(optuna.logging.WARNING)

TIMES = {name: 10.0 * place for place, name in enumerate(OPERATORS, start=1)}
GAIN = AcquisitionSpec(name="log_ei", per_second=True)
HYPERVOLUME = AcquisitionSpec(name="hypervolume")


# --- what a function costs ------------------------------------------------------------------


def test_every_operator_is_timed():
    times = operator_times()
    assert set(times) == set(OPERATORS)
    assert min(times.values()) > 0
    assert times["bessel_i0e"] > times["relu"]  # two hundred times as long


def test_a_function_costs_what_its_operators_cost():
    relu, tanh, add = (TIMES[name] for name in ("relu", "tanh", "add"))
    assert cost(parse("tanh(x)"), TIMES) == pytest.approx(max(1.0, tanh / relu))
    both = cost(parse("add(tanh(x),erf(x))"), TIMES)
    assert both == pytest.approx((tanh + TIMES["erf"] + add) / relu)
    once = cost(parse("mul(tanh(x),add(tanh(x),erf(x)))"), TIMES)
    assert once == pytest.approx((tanh + TIMES["erf"] + add + TIMES["mul"]) / relu)
    three = cost(parse("sum_n(tanh(x),erf(x),relu(x))"), TIMES)
    assert three == pytest.approx((tanh + TIMES["erf"] + relu + 2 * TIMES["sum_n"]) / relu)
    assert cost(parse("x"), TIMES) == 1.0


def test_costs_of_a_catalogue_are_those_of_its_functions(act_bench_catalogue):
    found = costs_of(act_bench_catalogue, TIMES)
    assert found.shape == (len(act_bench_catalogue),)
    for index in (0, 17, 2000):
        assert found[index] == cost(act_bench_catalogue.expression(index), TIMES)


# --- the front and the area it dominates ----------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=12, unique=True)
)
def test_the_front_is_what_nothing_beats(points):
    values, costs = zip(*points, strict=True)
    found = pareto_front(values, [-cost for cost in costs])
    objectives = torch.tensor([[v, -c] for v, c in points], dtype=torch.float64)
    assert set(found) == set(torch.nonzero(is_non_dominated(objectives)).flatten().tolist())
    assert [values[i] for i in found] == sorted((values[i] for i in found), reverse=True)


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> float:
    """The area by BoTorch; objectives are value and minus cost."""
    least, most = reference
    ours = torch.from_numpy(points * [1.0, -1.0])
    volume = Hypervolume(torch.tensor([least, -most], dtype=torch.float64))
    return float(volume.compute(ours[is_non_dominated(ours)]))


@pytest.mark.parametrize("seed", range(4))
def test_hypervolume_improvement_is_its_definition(seed):
    generator = np.random.default_rng(seed)
    had = np.column_stack([generator.normal(size=6), generator.uniform(0, 4, size=6)])
    costs = np.array([0.0, 1.0, 2.5, 3.9, 4.0])
    mean, deviation = generator.normal(size=5), generator.uniform(0.2, 1.5, size=5)
    reference = (-0.4, 4.0)
    found = expected_hypervolume_improvement(
        PoolMarginals(torch.from_numpy(mean), torch.from_numpy(deviation**2)),
        torch.from_numpy(costs),
        values=torch.from_numpy(had[:, 0]),
        of=torch.from_numpy(had[:, 1]),
        reference=reference,
    )
    before = hypervolume(had, reference)
    draws = (np.arange(400) + 0.5) / 400  # quantiles in place of chance
    normal = torch.special.ndtri(torch.from_numpy(draws)).numpy()
    for place in range(5):
        gains = [
            hypervolume(np.vstack([had, [y, costs[place]]]), reference) - before
            for y in mean[place] + deviation[place] * normal
        ]
        assert float(found[place]) == pytest.approx(np.mean(gains), abs=0.02)
    assert float(found[4]) == 0.0  # at the largest cost there is no area to win


def test_without_a_front_the_area_is_improvement_times_width():
    pool = PoolMarginals(torch.tensor([1.0, 1.0]).double(), torch.tensor([1e-12, 1e-12]).double())
    found = expected_hypervolume_improvement(
        pool,
        torch.tensor([0.0, 2.0]).double(),
        values=torch.tensor([-1.0]).double(),
        of=torch.tensor([1.0]).double(),
        reference=(0.0, 3.0),
    )
    np.testing.assert_allclose(found, [3.0, 1.0], atol=1e-5)


# --- seconds --------------------------------------------------------------------------------


def test_seconds_are_a_line_that_one_stall_does_not_move():
    costs = np.linspace(1, 50, 40)
    seconds = 3.0 + 0.2 * costs
    indices = np.arange(0, 40, 4)
    measured = seconds[indices].copy()
    measured[3] = 500.0
    measured[5] = np.nan
    np.testing.assert_allclose(predicted_seconds(costs, indices, measured), seconds, rtol=0.02)


def test_too_few_times_say_nothing():
    costs, indices = np.linspace(1, 5, 9), np.arange(6)
    some = np.array([1.0, 2.0, np.nan, np.nan, 3.0, 4.0])
    assert predicted_seconds(costs, indices, some) is None
    assert predicted_seconds(costs, indices, None) is None
    # What is dearer and yet quicker does not make a rule.
    falling = predicted_seconds(costs, indices, np.array([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]))
    np.testing.assert_array_equal(falling, np.full(9, 3.5))


def test_gains_by_second_divide_and_logarithms_subtract():
    gains, seconds = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 4.0])
    torch.testing.assert_close(
        per_second_of(AcquisitionSpec(per_second=True), gains, seconds), torch.tensor([2.0, 0.75])
    )
    torch.testing.assert_close(
        per_second_of(GAIN, gains.log(), seconds).exp(), torch.tensor([2.0, 0.75])
    )


# --- in a search ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins() -> Embedding:
    """Every point of the cloud twice: the same features, and another cost."""
    return Embedding(np.vstack([CLOUD, CLOUD]), BLOCKS, np.ones(240, dtype=bool))


def observed(count: int = 20) -> Observations:
    indices = np.arange(count)
    return Observations(indices, smooth(CLOUD)[indices], seconds=np.ones(count))


@pytest.mark.parametrize("cheap", [0, 120])
@pytest.mark.parametrize("spec", [GAIN, AcquisitionSpec(per_second=True), HYPERVOLUME])
def test_of_two_alike_the_cheaper_is_proposed(twins, spec, cheap):
    costs = np.full(240, 8.0)
    costs[cheap : cheap + 120] = 2.0
    dear = 120 - cheap
    indices = np.arange(dear, dear + 20)
    costs[indices[::2]] = 10.0  # equal costs would say nothing of the slope
    seen = Observations(indices, smooth(CLOUD)[:20], seconds=2 * costs[indices])
    searcher = Searcher(acquisition=spec, costs=costs)
    for number in range(20, 24):
        assert cheap <= searcher.propose(twins, seen, number=number).index < cheap + 120


def test_running_functions_are_on_the_front(twins):
    searcher = Searcher(acquisition=HYPERVOLUME, costs=np.repeat([2.0, 8.0], 120))
    first = searcher.propose(twins, observed(), number=20).index
    second = searcher.propose(twins, observed(), pending=[first], number=20).index
    assert first != second
    assert not np.array_equal(twins.points[first], twins.points[second])


def test_hypervolume_finds_the_front(twins):
    costs = 1 + 9 * CLOUD[:, 1]
    embedding = Embedding(CLOUD.copy(), BLOCKS, np.ones(120, dtype=bool))
    values = smooth(CLOUD)

    def area(spec: AcquisitionSpec, seed: int) -> float:
        searcher = Searcher(acquisition=spec, costs=costs, seed=seed)
        seen: list[int] = []
        for number in range(20):
            known = np.array(seen, dtype=np.int64)
            seen.append(
                searcher.propose(embedding, Observations(known, values[known]), number=number).index
            )
        found = np.column_stack([values[seen], np.log(costs[seen])])
        return hypervolume(found, (float(np.median(values)), math.log(10)))

    both = np.mean([area(HYPERVOLUME, seed) for seed in range(3)])
    value = np.mean([area(AcquisitionSpec(), seed) for seed in range(3)])
    assert both > value


def test_knowledge_gradient_is_its_definition():
    embedding = Embedding(CLOUD.copy(), BLOCKS, np.ones(120, dtype=bool))
    observations = Observations(np.arange(25), smooth(CLOUD)[:25])
    fit = Searcher().fit(embedding, observations)
    model, y = fit.model, fit.y
    points = torch.from_numpy(CLOUD[25:].copy())
    scores = score_pool(
        AcquisitionSpec(name="knowledge_gradient"), model, points, float(y.max())
    ).numpy()
    mean, covariance = (part.numpy() for part in model.joint(torch.from_numpy(CLOUD.copy())))
    z = np.linspace(-8, 8, 8001)
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    expected = []
    for place in range(25, 120):
        move = covariance[:, place] / math.sqrt(covariance[place, place] + float(model.noise))
        largest = (mean[:, None] + move[:, None] * z).max(axis=0)
        expected.append(np.trapezoid(largest * density, z) - mean.max())
    expected = np.array(expected)
    np.testing.assert_allclose(scores, expected, atol=0.03 * expected.max())
    assert expected[scores.argmax()] > 0.95 * expected.max()


# --- what is refused ------------------------------------------------------------------------


def test_what_cannot_be_is_refused(act_bench):
    with pytest.raises(ValidationError, match="measures a gain"):
        AcquisitionSpec(name="ucb", per_second=True)
    with pytest.raises(SearchError, match="needs the functions' costs"):
        Searcher(acquisition=GAIN)
    with pytest.raises(SearchError, match="expected the costs of the 2826 functions"):
        ActivationSampler(act_bench, acquisition=GAIN, costs=np.ones(3))
    with pytest.raises(SearchError, match="costs cannot be used"):
        ActivationSampler(act_bench, candidates="trees", acquisition=GAIN)


@pytest.mark.parametrize(
    "acquisition",
    [GAIN, AcquisitionSpec(name="hypervolume"), AcquisitionSpec(name="knowledge_gradient")],
    ids=["per_second", "hypervolume", "knowledge_gradient"],
)
def test_what_looks_at_all_functions_is_refused_before_anything_is_trained(acquisition):
    space = load_space("classic")
    options = {"acquisition": acquisition, "costs": np.ones(len(space.catalogue))}
    for searched in (
        {"parameters": {"lr": FloatDistribution(0.1, 1.0)}},
        {"activations": ("stage1", "stage2")},
        {"candidates": "trees", "costs": None},
    ):
        with pytest.raises(SearchError, match=r"needs a list of all|costs cannot be used"):
            ActivationSampler(space, **(options | searched))
    # Parameters that the objective asks for are known after its first trial.
    sampler = ActivationSampler(space, **options, baselines=(), initial=0)
    study = optuna.create_study(sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        space.suggest_expression(trial)
        return trial.suggest_float("lr", 0.1, 1.0)

    with pytest.raises(SearchError, match="choose another acquisition, such as log_ei"):
        study.optimize(objective, n_trials=8)


# --- in a study -----------------------------------------------------------------------------


def test_a_replay_notes_the_seconds_of_the_benchmark(one):
    class Sampler(optuna.samplers.RandomSampler):
        pass

    steps = replay(one, Sampler(seed=0), evaluations=6)
    for step in steps:
        expected = np.nanmedian(one.runs["seconds"][step.index])
        assert step.train_seconds == (pytest.approx(expected) if np.isfinite(expected) else None)


STUDY = f"""
name = "cheap"
space = "classic"
trials = 14
{TASK}[features]
fim = false
[acquisition]
name = "hypervolume"
[confirm]
top = 2
seeds = 2
baselines = []
"""


def test_a_study_of_value_and_cost(tmp_path, monkeypatch, bo_act):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cheap.toml").write_text(STUDY)
    spec = read_study("cheap.toml")
    result = run_study(spec)
    study = load_study(spec)
    times = study.user_attrs["operator_times"]
    assert set(times) == set(OPERATORS)
    for trial in study.trials:
        expected = cost(parse(trial.user_attrs["activation"]), times)
        assert trial.user_attrs["cost"] == pytest.approx(expected, abs=1e-3)
    assert result.front
    assert [found.value for found in result.front] == sorted(
        (found.value for found in result.front), reverse=True
    )
    assert [found.cost for found in result.front] == sorted(
        (found.cost for found in result.front), reverse=True
    )
    assert result.front[0].value == result.best.value
    found = [row.activation for row in result.confirmed if row.role == "found"]
    assert found == [f.activation for f in result.front[:2]] or len(result.front) < 2
    # More trials go by the same times.
    run_study(spec.model_copy(update={"trials": 16}))
    assert load_study(spec).user_attrs["operator_times"] == times
    assert read_result(spec).front
    code, out, _ = bo_act("best", "cheap.toml")
    assert code == 0
    assert "Pareto front: accuracy against inference cost" in out
    code, out, _ = bo_act("why", "cheap.toml", "15")
    assert code == 0
