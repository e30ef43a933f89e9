"""Recommendations: sources, the study's own task, metrics, and what cannot be recommended for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks_of_tests import random_benchmark

import bo_act as package
from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.benchmark.sources import is_task_of
from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError, BoActError, ContentNotFoundError, SpecError
from bo_act.metrics import Metric
from bo_act.spaces.space import Space, load_space
from bo_act.specs import SpaceSpec, StudySpec
from bo_act.specs.files import read_study
from bo_act.study.results.recommendation import RANKS, recommend

SHIPPED = (
    "digits_mlp",
    "digits_resnet",
    "digits_small_cnn",
    "fashion_mlp_adam",
    "fashion_mnist_small_cnn",
    "fashion_vit",
    "friedman_mlp",
    "topics_gpt",
)
LOSS = Metric("loss", "minimize", "nats")


def written(name: str, benchmark: Benchmark) -> str:
    """Write a benchmark and return its path."""
    path = Path(f"{name}.parquet")
    save(dataclasses.replace(benchmark, name=name), path)
    return str(path)


@pytest.fixture
def pair(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    space = load_space("classic")
    return [
        written(name, random_benchmark(space, seed=seed)) for name, seed in (("a", 1), ("b", 2))
    ]


@pytest.fixture
def study() -> StudySpec:
    return read_study("quickstart", {"space": "classic"})


def test_the_gains_are_those_of_the_sources(pair, study):
    found = recommend(study, sources=pair, top=3)
    a, b = map(open_benchmark, pair)
    index = a.space.catalogue.index
    relu = index("relu(x)")
    for one in found.functions:
        place = index(one.activation)
        expected = [each.values[place] - each.values[relu] for each in (a, b)]
        np.testing.assert_allclose(one.measured, expected)
        assert one.low < one.gain < one.high
    assert found.sources == ("a", "b")
    assert found.over == "relu(x)"
    assert found.unit == "points of accuracy"
    assert [one.gain for one in found.functions] == sorted(
        (one.gain for one in found.functions), reverse=True
    )
    assert "relu(x)" not in [
        one.activation for one in recommend(study, sources=pair, top=99).functions
    ]


def test_a_space_is_enough(pair, study):
    space = load_space("classic")
    assert recommend(space, sources=pair).functions == recommend(study, sources=pair).functions


def test_a_loss_is_a_value_with_the_other_sign(pair, study):
    losses = []
    for path in pair:
        one = open_benchmark(path)
        runs = {name: (-v if name.endswith("_value") else v) for name, v in one.runs.items()}
        chance, curves = -one.chance, None
        turned = dataclasses.replace(
            one, runs=runs, metric=LOSS, chance=chance, curves=curves, provenance={"made": "up"}
        )
        losses.append(written(f"{one.name}_loss", turned))
    spec = study.model_copy(
        update={"objective": "mine.py:train", "metric": type(study.metric)(**_keys(LOSS))}
    )
    found, usual = recommend(spec, sources=losses), recommend(study, sources=pair)
    assert found.unit == "nats of loss"
    for one, other in zip(found.functions, usual.functions, strict=True):
        assert one.activation == other.activation
        np.testing.assert_allclose(
            [one.gain, one.low, one.high], [other.gain, other.low, other.high]
        )


def _keys(metric: Metric) -> dict[str, str]:
    return {"name": metric.name, "direction": metric.direction, "unit": metric.unit}


def test_where_metrics_differ_gains_are_in_ranks(pair, study):
    spec = study.model_copy(
        update={"objective": "mine.py:train", "metric": type(study.metric)(**_keys(LOSS))}
    )
    found = recommend(spec, sources=pair)
    assert found.metric is None
    assert found.unit == RANKS
    # Any scale of a source's values says the same.
    one = open_benchmark(pair[0])
    runs = dict(one.runs) | {"validation_value": one.runs["validation_value"] ** 3}
    single = dataclasses.replace(one, runs=runs, curves=None).of_runs([0])
    usual = recommend(spec, sources=[written("one", one.of_runs([0])), pair[1]])
    cubed = recommend(spec, sources=[written("cubed", single), pair[1]])
    assert [f.activation for f in usual.functions] == [f.activation for f in cubed.functions]
    np.testing.assert_allclose(
        [f.gain for f in usual.functions], [f.gain for f in cubed.functions], atol=1e-9
    )


def test_functions_that_no_source_knows_are_predicted(pair):
    space = Space(
        SpaceSpec(
            name="mine", expressions=("relu(x)", "tanh(x)", "max(x,tanh(x))", "sub(x,erf(x))")
        )
    )
    found = recommend(space, sources=pair, top=9)
    by_name = {one.activation: one for one in found.functions}
    assert set(by_name) == {"tanh(x)", "max(x,tanh(x))", "sub(x,erf(x))"}
    unknown = by_name["sub(x,erf(x))"]
    assert unknown.measured == (None, None)
    assert unknown.high - unknown.low > by_name["tanh(x)"].high - by_name["tanh(x)"].low


def test_a_source_of_two_functions_predicts_nothing(pair, study):
    benchmark = open_benchmark(pair[0])
    others = np.arange(len(benchmark)) != benchmark.space.catalogue.index("relu(x)")
    runs = {name: np.where(others[:, None], np.nan, v) for name, v in benchmark.runs.items()}
    few = dataclasses.replace(benchmark, runs=runs, curves=None, provenance={"part": True})
    with pytest.raises(BenchmarkError, match=r"'few' has 1 measured function, too few .* leave it"):
        recommend(study, sources=[pair[1], written("few", few)])


def test_a_copy_of_a_source_counts_once(pair, study):
    copy = written("copy", open_benchmark(pair[0]))
    assert recommend(study, sources=[*pair, copy]).sources == ("a", "b")
    with pytest.raises(BenchmarkError, match="at least 2 benchmarks of other tasks, got a; name"):
        recommend(study, sources=[pair[0], copy])


def test_neither_network_nor_data_is_read(pair, tmp_path):
    lacking = {"space": "classic", "model.name": "./none.py", "data.root": str(tmp_path / "none")}
    assert recommend(read_study("quickstart", lacking), sources=pair).functions


@pytest.mark.parametrize(
    ("changes", "options", "error", "said"),
    [
        ({"activations": ["early", "late"]}, {}, SpecError, "has 2 activations .early, late."),
        ({"space": "six_operators"}, {}, SpecError, "expressions is searched without one; name a"),
        ({"candidates": "trees"}, {}, SpecError, "recommendations need a list of all functions"),
        ({}, {"over": "cosh(x)"}, BenchmarkError, "'a' has no value of the present function cosh"),
        ({}, {"over": "what(x)"}, BoActError, "what"),
        ({}, {"top": 0}, BoActError, "top"),
        ({}, {"sources": ["nowhere"]}, ContentNotFoundError, "nowhere"),
        ({}, {"sources": []}, BenchmarkError, "at least 2 benchmarks of other tasks, got none"),
    ],
)
def test_what_cannot_be_recommended_for(pair, changes, options, error, said):
    spec = read_study("quickstart", {"space": "classic", **changes})
    with pytest.raises(error, match=said) as caught:
        recommend(spec, **({"sources": pair} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_benchmark_is_of_its_own_study_alone(name):
    benchmark = open_benchmark(name)
    assert [other for other in SHIPPED if is_task_of(benchmark, read_study(other))] == [name]
    assert is_task_of(benchmark, read_study(name, {"seed": 7, "space": "classic", "trials": 9}))
    assert not is_task_of(benchmark, read_study(name, {"training.epochs": 3}))
    # Whatever is measured: trainings are the same.
    other = "accuracy" if benchmark.metric.name == "log loss" else None
    if other:
        assert is_task_of(benchmark, read_study(name, {"metric.name": other}))


def test_the_default_sources_have_the_studys_metric_if_enough_do():
    accuracies, errors = (
        recommend(read_study(one), top=1) for one in ("quickstart", "diabetes_mlp")
    )
    assert "friedman_mlp" not in accuracies.sources
    assert accuracies.unit == "points of accuracy"
    assert errors.sources == SHIPPED
    assert errors.unit == RANKS


def test_a_default_source_without_the_present_function_is_left_out():
    """A part of the space is measured there."""
    part = open_benchmark("topics_gpt")
    lacking = part.space.catalogue.text(int(np.flatnonzero(~part.measured)[0]))
    found = recommend(read_study("diabetes_mlp"), top=1, over=lacking)
    assert found.sources == tuple(name for name in SHIPPED if name != "topics_gpt")
    with pytest.raises(BenchmarkError, match=r"'topics_gpt' has no value .* leave that benchmark"):
        recommend(read_study("diabetes_mlp"), over=lacking, sources=SHIPPED)


def test_the_own_task_is_left_out_and_said(bo_act, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = bo_act("recommend", "digits_mlp", "--top", "2")
    assert (code, err) == (0, "")
    words = " ".join(out.split())
    assert "last column: digits_small_cnn, fashion_mlp_adam, fashion_mnist_small_cnn." in words
    assert "Left out, because they measure this very task: digits_mlp" in words
    assert max(map(len, out.splitlines())) <= 80
    code, out, err = bo_act("recommend", "digits_mlp", "--top", "2", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["left_out"] == ["digits_mlp"]
    assert len(found["functions"]) == 2
    assert found["functions"][0]["measured"].keys() == set(found["sources"])
    assert found["level"] == 0.8
    assert package.recommend(read_study("digits_mlp"), top=2).as_json() == found


def test_bad_input_is_one_line(bo_act, pair):
    arguments = ["--source", pair[0], "--source", pair[1]]
    code, out, err = bo_act("recommend", "quickstart", *arguments, "--over", "gelu(x")
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
