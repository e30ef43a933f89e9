"""What a confirmation says over further test examples as well as further seeds."""

from __future__ import annotations

import json

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import bo_act
from bo_act.specs import StudySpec
from bo_act.statistics import crossed
from bo_act.study.results.confirmation import confirmed_runs
from bo_act.study.results.confirmed import KEY, packed, unpacked, values_per_example
from bo_act.study.results.summary import best_configurations, read_result
from bo_act.study.results.verdict import caveats, sampled, verdict
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)


@given(arrays.arrays(bool, st.integers(2, 70)))
def test_right_and_wrong_is_kept_in_bits(right):
    kept = json.loads(json.dumps(packed(right)))
    assert len(kept["bits"]) <= 4 * (len(right) // 24 + 1)
    np.testing.assert_array_equal(unpacked(kept), right)


def test_losses_are_kept_in_float32_and_of_many_the_means_of_groups():
    generator = np.random.default_rng(0)
    few = generator.gamma(1.0, size=300)
    np.testing.assert_array_equal(unpacked(packed(few)), few.astype(np.float32))
    many = np.sort(generator.gamma(1.0, size=100_003))  # sorted, as by class
    kept = packed(many)
    found = unpacked(kept)
    assert len(json.dumps(kept)) < 25_000
    assert found.mean() == pytest.approx(many.mean(), rel=1e-6)
    # The spread says as much of the mean as that of all.
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert error == pytest.approx(many.std(ddof=1) / np.sqrt(len(many)), rel=0.05)
    assert packed(np.array([1.0, np.inf])) is None
    assert packed(np.array([1.0, 1e300])) is None
    assert packed(np.array([True])) is None


def test_a_run_that_diverged_has_one_value_for_all():
    right = np.array([True, False, True])
    runs = [{"status": "completed", KEY: packed(right)}, {"status": "diverged", KEY: None}]
    np.testing.assert_array_equal(
        values_per_example(runs, [2 / 3, 0.1], 3), [[1, 0, 1], [0.1, 0.1, 0.1]]
    )
    assert values_per_example(runs, [2 / 3, 0.1], 4) is None
    assert values_per_example([{"status": "completed"}], [0.5], 3) is None


# --- studies --------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path, monkeypatch) -> StudySpec:
    monkeypatch.chdir(tmp_path)
    return StudySpec.model_validate(
        {
            "name": "small",
            "space": "classic",
            "model": {"name": "mlp", "options": {"widths": [16]}},
            "data": {"name": "digits", "train": 320, "validation": 200},
            "training": {"epochs": 1, "threads": 1, "device": "cpu"},
            "features": {"fim": False},
            "trials": 4,
            "confirm": {"top": 1, "seeds": 3, "baselines": ["tanh(x)"]},
        }
    )


def test_a_study_keeps_each_example_and_gives_the_wider_interval(spec):
    result = run_study(spec)
    study = load_study(spec)
    runs = confirmed_runs(spec, study, best_configurations(study, spec))
    right = {text: np.stack([unpacked(run[KEY]) for run in some]) for text, some in runs.items()}
    test = Task.load(spec).data.load_test()
    for text, rows in right.items():
        assert rows.shape == (3, len(test))
        assert rows.mean(axis=1).tolist() == [run["test"] for run in runs[text]]
    for row in result.confirmed:
        mine = right[row.activation]
        found = crossed(mine)
        assert row.test.intervals == {
            "seeds": pytest.approx(found.seeds.interval),
            "examples": found.examples.interval,
            "both": found.both.interval,
        }
        widths = {name: high - low for name, (low, high) in row.test.intervals.items()}
        assert row.test.high - row.test.low == max(widths["seeds"], widths["both"])
        for other, one in row.minus.items():
            pairs = crossed(mine, right[other])
            assert one.mean == pytest.approx((mine - right[other]).mean())
            assert one.interval == one.intervals[one.over]
            assert one.p == one.p_values[one.over]
            assert one.p_values["both"] == pairs.both.p
    printed = next(
        one for one in json.loads(json.dumps(result.as_json()))["confirmed"] if one["minus_relu"]
    )
    assert set(printed["test"]["intervals"]) == {"seeds", "examples", "both"}
    assert set(printed["minus_relu"]["p_values"]) == {"seeds", "examples", "both"}
    said = " ".join([verdict(result.confirmed).text, *caveats(result.confirmed)])
    assert "over seeds" in said
    assert "seeds alone" not in said


def test_runs_without_examples_are_read_and_said_to_be_over_seeds_alone(spec):
    run_study(spec)
    study = load_study(spec)
    for key, kept in study.user_attrs.items():
        if key.startswith("bo_act:confirmed:"):
            study.set_user_attr(key, {name: kept[name] for name in kept if name != KEY})
    result = read_result(spec)
    best = result.confirmed[0]
    assert (best.test.over, best.test.intervals) == ("seeds", {})
    relu = next(one for one in result.confirmed if one.minus_relu)
    assert sampled([relu.minus_relu]) == "over seeds alone"
    assert any("the runs have no values per example" in one for one in caveats(result.confirmed))


# --- loops of your own ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "float", "tensor"])
def test_a_loop_of_your_own_may_return_every_example(kind):
    import torch

    space = bo_act.load_space("classic")
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(lambda t: len(str(space.suggest_expression(t))), n_trials=5)

    def examples(text: str, seed: int) -> np.ndarray:
        level = np.random.default_rng(0).random(200)  # how hard an example is
        noise = np.random.default_rng([seed, len(text)]).random(200)
        return level + 0.3 * noise > 0.7 - 0.01 * len(text)

    def train(activation, seed):
        right = examples(str(activation.expression), seed)
        return {
            "bool": right,
            "float": right.astype(float),
            "tensor": torch.tensor(right, dtype=torch.bfloat16),
        }[kind]

    best, relu = bo_act.confirm(study, train, space=space, top=1, seeds=4)
    tables = [
        np.stack([examples(one.activation, 10_000 + s) for s in range(4)]) for one in (best, relu)
    ]
    expected = crossed(*(one.astype(float) for one in tables))
    assert best.values == pytest.approx(tables[0].mean(axis=1))
    mine = crossed(tables[0].astype(float))
    assert 0.5 < tables[0].mean() < 1
    assert best.over == mine.wider
    assert best.intervals["both"] == mine.both.interval
    assert best.interval == best.intervals[best.over]
    assert best.minus["relu(x)"].intervals["both"] == expected.both.interval
    assert best.minus["relu(x)"].p_values["examples"] == expected.examples.p
    assert "test examples" in str(best)
    again = bo_act.confirm(study, lambda *_: 1 / 0, space=space, top=1, seeds=4)
    assert again == [best, relu]


@pytest.mark.parametrize("wrong", ["good", [[1.0, 2.0]], [], ["a"], None, {"value": 1.0}])
def test_what_is_no_number_and_no_list_of_them_is_told(wrong):
    space = bo_act.load_space("classic")
    study = optuna.create_study(direction="maximize")
    study.optimize(lambda t: len(str(space.suggest_expression(t))), n_trials=2)
    with pytest.raises(bo_act.BoActError, match="to return a number, or a number per test example"):
        bo_act.confirm(study, lambda *_: wrong, space=space, seeds=1)
