"""A function that is evaluated again: by whom, with which seed, and what the study makes of it."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from small_studies import STORAGE

import bo_act
from bo_act.errors import BoActError
from bo_act.metrics import ACCURACY
from bo_act.specs import AcquisitionSpec, StudySpec
from bo_act.study.results.summary import best_value, rank, read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.trials import averaged, repetition

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Few functions and a lot of noise: what was measured once tells little.
NOISY = """
import numpy as np

def objective(trial, activation, *, seed):
    generator = np.random.default_rng([seed, len(str(activation))])
    trial.set_user_attr("trained with", seed)
    return len(str(activation)) / 100 + generator.normal()
"""


def noisy(**changes) -> StudySpec:
    Path("noisy.py").write_text(NOISY)
    content = {
        "name": "noisy",
        "space": "classic",
        "trials": 40,
        "storage": STORAGE,
        "objective": "noisy.py:objective",
        "acquisition": {"repeat": "auto"},
        "surrogate": {"noise": 1.0},
    }
    return StudySpec.model_validate(content | changes)


def test_a_repetition_is_a_trial_of_its_own_with_a_fresh_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    confirm = {"top": 1, "seeds": 2, "baselines": []}
    result = run_study(spec := noisy(confirm=confirm))
    assert result.confirmed[0].searched == result.best.value
    trials = load_study(spec).trials
    counts = Counter(trial.user_attrs["activation"] for trial in trials)
    assert max(counts.values()) > 1
    before: Counter[str] = Counter()
    for trial in trials:
        text = trial.user_attrs["activation"]
        assert repetition(trial) == before[text]
        assert trial.user_attrs["trained with"] == spec.seed + before[text]
        before[text] += 1
    assert result.trials.complete == len(trials) == 40
    assert len({found.activation for found in result.top}) == len(result.top)
    means = {
        text: np.mean([t.value for t in trials if t.user_attrs["activation"] == text])
        for text in counts
    }
    for found in result.top:
        assert found.value == pytest.approx(means[found.activation])
    assert result.best.value == pytest.approx(max(means.values()))
    assert best_value(load_study(spec)) == pytest.approx(max(means.values()))
    assert read_result(spec).best == result.best


def test_without_it_each_is_evaluated_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_study(spec := noisy(acquisition={}, trials=20))
    trials = load_study(spec).trials
    assert len({trial.user_attrs["activation"] for trial in trials}) == 20
    assert not any(map(repetition, trials))


def trial(number: int, value: float | None, function: str, *, again: int = 0, **more):
    made = optuna.trial.create_trial(
        value=value,
        params={"unary": function},
        distributions={"unary": optuna.distributions.CategoricalDistribution(["a", "b", "c"])},
        user_attrs={"proposal": {"by": "acquisition"} | ({"repetition": again} if again else {})}
        | more,
    )
    made.number = number
    return made


def test_the_luckiest_value_is_not_the_best():
    trials = [trial(0, 0.9, "a"), trial(1, 0.8, "b"), trial(2, 0.6, "a", again=1)]
    best, second = rank(trials, ACCURACY)
    assert (best.number, best.value) == (1, 0.8)
    assert (second.number, second.value) == (0, 0.75)
    assert trials[0].value == 0.9  # Optuna's own object is left alone


def test_the_same_function_by_hand_stays_two_trials():
    trials = [trial(0, 0.9, "a"), trial(1, 0.6, "a")]
    assert [t.value for t in averaged(trials)] == [0.9, 0.6]


def test_a_repetition_that_diverges_counts():
    low = {"status": "diverged"}
    known = [trial(0, 0.9, "a"), trial(1, 0.1, "a", again=1, **low), trial(2, 0.7, "b")]
    assert [(t.number, t.value) for t in rank(known, ACCURACY)] == [(2, 0.7), (0, 0.5)]
    unknown = [trial(0, 0.9, "a"), trial(1, -math.inf, "a", again=1, **low), trial(2, 0.7, "b")]
    assert [t.number for t in rank(unknown, ACCURACY)] == [2]


def test_it_needs_an_acquisition_that_knows_noise():
    with pytest.raises(ValueError, match="expected repeat = 'auto' with 'max_value_entropy'"):
        AcquisitionSpec(name="ucb", repeat="auto")
    with pytest.raises(ValueError, match="per second"):
        AcquisitionSpec(per_second=True, repeat="auto")
    with pytest.raises(ValueError, match="a benchmark has one value per function"):
        bo_act.MethodSpec(acquisition={"repeat": "auto"})


def test_it_needs_the_gaussian_process():
    space = bo_act.load_space("classic")
    with pytest.raises(BoActError, match=r"acquisition\.repeat.*got 'forest'"):
        bo_act.ActivationSampler(
            space,
            surrogate=bo_act.SurrogateSpec(name="forest"),
            acquisition=AcquisitionSpec(repeat="auto"),
        )
