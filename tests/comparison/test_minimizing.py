"""A benchmark of a loss: the mirror image of one of accuracies, wherever it is looked at."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import optuna
import pytest
from benchmarks_of_tests import random_benchmark

import bo_act
from bo_act.benchmark.act_bench import write_act_bench
from bo_act.benchmark.parquet import load, open_benchmark, save
from bo_act.benchmark.selection_bias import selection_bias
from bo_act.benchmark.sources import as_source
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.replay import replay
from bo_act.errors import BenchmarkError, SearchError
from bo_act.metrics import Metric
from bo_act.spaces.space import load_space
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.sampling.warm_start import add_source_trials

LOSS = Metric("loss", "minimize", "nats")


@pytest.fixture(scope="module")
def benchmark() -> Benchmark:
    return random_benchmark(load_space("classic"))


@pytest.fixture(scope="module")
def losses(benchmark) -> Benchmark:
    """2 minus the accuracies."""
    runs = {
        name: 2 - values if name.endswith("value") else values
        for name, values in benchmark.runs.items()
    }
    return dataclasses.replace(
        benchmark,
        name="losses",
        runs=runs,
        chance=2 - benchmark.chance,
        curves=2 - benchmark.curves,
        metric=LOSS,
    )


def test_what_is_best_is_smallest(benchmark, losses):
    assert losses.best == benchmark.best
    assert (losses.ranks == benchmark.ranks).all()
    assert losses.values[losses.best] == np.nanmin(losses.values)
    assert losses.hash != benchmark.hash
    known = losses.measured
    np.testing.assert_allclose(
        as_source(losses, losses.space).values[known],
        as_source(benchmark, benchmark.space).values[known] - 2,
    )
    one, other = selection_bias(benchmark), selection_bias(losses)
    for name, value in one.items():
        mirrored = 2 - value if name in ("chosen", "held_out") else value
        assert other[name] == pytest.approx(mirrored, abs=1e-12)


def test_a_file_keeps_the_metric(losses, tmp_path):
    save(losses, tmp_path / "losses.parquet")
    read = load(tmp_path / "losses.parquet")
    assert read.metric == LOSS
    np.testing.assert_allclose(read.values, losses.values, rtol=1e-6)
    with pytest.raises(BenchmarkError, match=r"stores accuracies, but .* measures loss"):
        write_act_bench(losses, tmp_path / "losses.json")
    # Files from before say nothing of it.
    assert open_benchmark("digits_mlp").metric.name == "accuracy"


def test_a_search_finds_the_same(benchmark, losses):
    def searched(on: Benchmark) -> list:
        sampler = ActivationSampler(on.space, seed=3)
        return replay(on, sampler, evaluations=14)

    one, other = searched(benchmark), searched(losses)
    assert [step.index for step in one] == [step.index for step in other]
    for a, b in zip(one, other, strict=True):
        assert (b.value, b.test) == pytest.approx((2 - a.value, 2 - a.test))


def test_a_comparison_has_the_same_regrets(benchmark, losses, tmp_path, bo_act, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(benchmark, tmp_path / "accuracies.parquet")
    save(losses, tmp_path / "losses.parquet")
    options = {"seeds": 3, "evaluations": 12}
    # At once they would be refused: nearly the same losses, beside the values.
    both = [compared(f"{name}.parquet", **options).summary for name in ("accuracies", "losses")]
    for method, found in both[0]["methods"].items():
        (one,), (other,) = (
            list(summed["methods"][method]["benchmarks"].values()) for summed in both
        )
        for key in ("regret", "test_regret", "normalized_regret", "median_rank"):
            for place, value in one[key].items():
                assert other[key][place] == pytest.approx(value, abs=1e-6), (key, place)
        assert found
    assert both[1]["benchmarks"]["losses.parquet"]["metric"] == LOSS.as_json()
    arguments = ("-b", "losses.parquet", "-m", "random", "--seeds", "2", "--evaluations", "5")
    code, out, _ = bo_act("compare", *arguments, "--report", "r.html", "--out", "runs")
    assert code == 0
    assert "Regret on losses.parquet, in nats of loss" in out
    assert "accuracy" not in out
    page = (tmp_path / "r.html").read_text()
    assert "in nats of loss;" in page
    assert not re.search("points of accuracy", page)
    code, out, _ = bo_act("bench", "show", "losses.parquet")
    assert code == 0
    assert "loss (minimize, nats)" in out
    assert "accuracy" not in out
    assert "%" not in out.split("Best by")[1]
    found = json.loads(bo_act("bench", "show", "losses.parquet", "--json")[1])
    assert found["metric"]["direction"] == "minimize"
    values = [one["validation"] for one in found["best"]]
    assert values == sorted(values)


def test_an_error_without_bound_does_not_decide_what_a_random_function_has(losses):
    """A regression may have errors of 1e38, next to which all regrets would be nothing."""
    runs = {name: values.copy() for name, values in losses.runs.items()}
    runs["validation_value"][:20] = losses.chance
    bounded = dataclasses.replace(losses, runs=runs)
    runs = runs | {"validation_value": runs["validation_value"].copy()}
    runs["validation_value"][:20] = 1e38
    assert dataclasses.replace(losses, runs=runs).expectation == bounded.expectation


def compared(name: str, **options):
    return bo_act.compare([name], ["default", "random"], **options)


def test_another_metric_is_learnt_from_by_rank(losses, tmp_path):
    space, source = losses.space, as_source(losses, losses.space)
    accuracy = optuna.create_study(direction="maximize")
    with pytest.raises(SearchError, match=r"'losses' measures loss .* cannot become trials"):
        add_source_trials(accuracy, space, [source])
    study = optuna.create_study(direction="minimize")
    assert add_source_trials(study, space, [source], most=3) == 3
    assert min(t.value for t in study.trials) == pytest.approx(np.nanmin(losses.values))
    sampler = ActivationSampler(space, warm_start=[source], seed=0)
    accuracy = optuna.create_study(direction="maximize", sampler=sampler)
    space.suggest(accuracy.ask())
    index = accuracy.trials[0].user_attrs["index"]
    assert losses.ranks[index] <= 3


def test_small_regrets_fit_on_a_line(losses, tmp_path, bo_act, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = {
        name: values / 4096 if name.endswith("value") else values
        for name, values in losses.runs.items()
    }
    save(
        dataclasses.replace(losses, runs=runs, chance=losses.chance / 4096),
        tmp_path / "small.parquet",
    )
    options = ["--benchmark", "small.parquet", "--method", "random", "--method", "evolution"]
    code, out, err = bo_act("compare", *options, "--evaluations", "10", "--seeds", "2")
    assert code == 0, err
    assert "…" not in out
    assert re.search(r"│ \d\.\de-\d ", out)
