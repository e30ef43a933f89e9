"""Replays: a benchmark answers what it holds, to the samplers of real studies."""

from __future__ import annotations

import dataclasses

import numpy as np
import optuna
import pytest
from benchmarks_of_tests import random_benchmark

from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.comparison.replay import initial_design, mean_curve, replay
from bo_act.errors import BenchmarkError
from bo_act.spaces.space import load_space
from bo_act.study.sampling.sampler import ActivationSampler


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return random_benchmark(load_space("classic"))


# --- the form -----------------------------------------------------------------------------------


def test_means_and_deviations_leave_missing_runs_out(benchmark):
    runs = {metric: values.copy() for metric, values in benchmark.runs.items()}
    runs["validation_value"][0] = [0.5, np.nan]
    runs["validation_value"][1] = [0.5, 0.7]
    other = dataclasses.replace(benchmark, runs=runs)
    assert other.values[0] == 0.5
    assert other.values[1] == pytest.approx(0.6)
    assert np.isnan(other.deviations[0])
    assert other.deviations[1] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert np.isnan(other.values[-1])
    assert not other.measured[-1]
    assert other.measured[:-1].all()
    assert other.hash != benchmark.hash


def test_ranks_share_ties(benchmark):
    runs = {metric: values.copy() for metric, values in benchmark.runs.items()}
    values = runs["validation_value"]
    values[:-1] = 0.3
    values[[2, 5]] = 0.9
    values[7] = 0.8
    ranks = dataclasses.replace(benchmark, runs=runs).ranks
    assert (ranks[[2, 5]] == 1).all()
    assert ranks[7] == 3
    assert ranks[0] == 4
    assert ranks[-1] == 0


def test_a_benchmark_that_is_none(benchmark):
    empty = {metric: np.full_like(values, np.nan) for metric, values in benchmark.runs.items()}
    with pytest.raises(BenchmarkError, match="no measured function"):
        dataclasses.replace(benchmark, runs=empty)
    few = {metric: values[:3] for metric, values in benchmark.runs.items()}
    with pytest.raises(BenchmarkError, match="expected train_value, validation_value"):
        dataclasses.replace(benchmark, runs=few)
    with pytest.raises(BenchmarkError, match="expected curves"):
        dataclasses.replace(benchmark, curves=benchmark.curves[:2])
    assert set(benchmark.runs) == set(MEASURED)


# --- replays ------------------------------------------------------------------------------------


def test_a_replay_answers_with_what_is_stored(benchmark):
    sampler = optuna.samplers.RandomSampler(seed=3)
    design = initial_design(benchmark, seed=1)
    steps = replay(benchmark, sampler, evaluations=len(benchmark) + 5, design=design)
    assert [step.evaluation for step in steps] == list(range(1, len(benchmark) + 6))
    assert [step.index for step in steps[: len(design)]] == design
    for step in steps:
        assert step.activation == benchmark.space.catalogue.text(step.index)
        if step.index == len(benchmark) - 1:
            assert (step.value, step.test) == (0.1, 0.1)  # not measured: as one that learns nothing
        else:
            assert step.value == benchmark.values[step.index]
            assert step.test == benchmark.test[step.index]
        given = step.evaluation <= len(design)
        assert step.suggest_seconds is None if given else step.suggest_seconds > 0
        assert not step.pruned


def test_the_design_is_the_same_for_every_method_and_other_for_every_seed(benchmark):
    catalogue = benchmark.space.catalogue
    baselines = [catalogue.index(text) for text in benchmark.space.baselines]
    designs = [initial_design(benchmark, seed=seed, initial=3) for seed in range(20)]
    for design in designs:
        assert design[: len(baselines)] == baselines
        assert len(set(design)) == len(baselines) + 3
        assert benchmark.measured[design].all()
    assert designs[4] == initial_design(benchmark, seed=4, initial=3)
    assert len(set(map(tuple, designs))) > 10


def test_a_replay_is_a_study_of_its_own(benchmark):
    """The very steps that a study with the same sampler and an objective of one's own takes."""
    values = np.where(benchmark.measured, benchmark.values, benchmark.chance)

    def sampler() -> ActivationSampler:
        return ActivationSampler(benchmark.space, features=benchmark.features, seed=2)

    study = optuna.create_study(direction="maximize", sampler=sampler())
    catalogue = benchmark.space.catalogue

    def objective(trial) -> float:
        benchmark.space.suggest(trial)
        return float(values[catalogue.index(trial.params)])

    study.optimize(objective, n_trials=15)
    steps = replay(benchmark, sampler(), evaluations=15)
    assert [catalogue.index(trial.params) for trial in study.trials] == [s.index for s in steps]
    assert [trial.value for trial in study.trials] == [step.value for step in steps]


def test_a_pruner_sees_the_mean_curve(benchmark):
    class Record(optuna.pruners.BasePruner):
        def __init__(self) -> None:
            self.seen: dict[int, list[float]] = {}

        def prune(self, study, trial) -> bool:
            self.seen.setdefault(trial.number, []).append(
                trial.intermediate_values[trial.last_step]
            )
            return trial.number == 2 and trial.last_step == 1

    pruner = Record()
    design = initial_design(benchmark, seed=0)[:4]
    sampler = optuna.samplers.RandomSampler(seed=0)
    steps = replay(benchmark, sampler, evaluations=4, design=design, pruner=pruner)
    for number, index in enumerate(design):
        with np.errstate(all="ignore"):
            curve = np.nanmean(benchmark.curves[index].astype(float), axis=0)
        curve = curve[np.isfinite(curve)]
        np.testing.assert_allclose(mean_curve(benchmark, index), curve)
        expected = curve[:2] if number == 2 else curve
        np.testing.assert_allclose(pruner.seen[number], expected)
        assert steps[number].pruned == (number == 2)
    assert steps[2].value == pytest.approx(mean_curve(benchmark, design[2])[1])


def test_no_pruning_without_curves(benchmark):
    bare = dataclasses.replace(benchmark, curves=None)
    sampler = optuna.samplers.RandomSampler(seed=0)
    with pytest.raises(BenchmarkError, match="no learning curves"):
        replay(bare, sampler, evaluations=1, pruner=optuna.pruners.MedianPruner())
