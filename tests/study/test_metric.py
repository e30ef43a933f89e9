"""A study of a loss: values as they are, smaller is better, in everything that shows them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import optuna
import pytest

import bo_act
from bo_act.errors import SearchError, StorageError
from bo_act.metrics import Metric
from bo_act.specs.files import read_study
from bo_act.study.results.explanation import why
from bo_act.study.results.stopping import improvement_left
from bo_act.study.running.dashboard_notes import note
from bo_act.study.running.runner import run_study
from bo_act.study.running.worker import compute_candidate_features, make_sampler
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import measured, own_trials
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = """
name = "few"
schemas = ["binary(unary(x),unary(x))"]
unary = ["identity", "tanh", "relu", "exp", "erf"]
binary = ["add", "mul", "max"]
baselines = ["relu(x)", "tanh(x)"]
"""

OBJECTIVE = """
import math, torch


def objective(trial, activation, *, seed=0):
    value = float(activation()(torch.tensor([0.7], dtype=torch.float64)))
    for step in range(2):
        trial.report(0.01 + step, step)
    if not 0.62 < value < 3:  # tanh(x) among them
        return math.nan
    return 0.003 + 0.002 * (value - 0.9) ** 2 + 1e-6 * (seed % 7)
"""

STUDY = """
name = "pinn"
space = "few.toml"
storage = "studies.log"
objective = "mine.py:objective"
trials = 12
[metric]
name = "relative error"
direction = "minimize"
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)
    Path("mine.py").write_text(OBJECTIVE)
    Path("pinn.toml").write_text(STUDY)


@pytest.fixture
def spec():
    return read_study("pinn.toml")


@pytest.fixture
def study(spec):
    run_study(spec)
    return load_study(spec)


def shows_no_percent(text: str) -> None:
    """No value of about 0.003 is shown as an accuracy, or with another sign."""
    assert not re.search(r"-0\.00\d|[-+]?0\.[23]\d%|accuracy", text), text


def test_the_study_has_the_direction_and_the_values_as_they_are(study):
    assert study.direction.name == "MINIMIZE"
    assert metric_of(study) == Metric("relative error", "minimize")
    values = [t.value for t in measured(own_trials(study))]
    assert len(values) >= 8
    assert all(0.003 <= value < 0.02 for value in values)
    # Optuna's own best trial is ours.
    assert study.best_value == min(values)


def test_a_diverged_training_is_no_better_than_the_worst(study):
    view = StudyView.of(study)
    diverged = [t for t in view.complete if t.user_attrs["status"] == "diverged"]
    assert diverged
    assert {t.value for t in diverged} == {math.inf}
    values = view.values(view.complete)
    worst = -max(t.value for t in measured(view.trials))
    assert values.min() == pytest.approx(worst)
    assert set(values[[t in diverged for t in view.complete]]) == {worst}
    known = StudyView.of_some(diverged, study.directions, worst=7.0)
    assert set(known.values(diverged)) == {-7.0}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_known_worst_value_is_what_a_diverged_training_has(direction):
    changes = {"metric.worst": "9.5", "metric.direction": direction, "name": "other"}
    run_study(found := read_study("pinn.toml", changes))
    diverged = [t for t in load_study(found).trials if t.user_attrs["status"] == "diverged"]
    assert diverged
    assert {t.value for t in diverged} == {9.5}
    assert load_study(found).best_value != 9.5  # the constraint says that it diverged


def test_the_search_looks_for_small_values(study, spec):
    task = Task.load(spec)
    sampler = make_sampler(task, compute_candidate_features(task, bo_act.Events()), study)
    told = sampler.view(study).observations
    assert (told.values < 0).all()
    finite = [t for t in own_trials(study) if t.state.is_finished()]
    best = min(measured(finite), key=lambda t: t.value)
    assert told.indices[told.values.argmax()] == best.user_attrs["index"]
    proposed = [t for t in finite if "expected" in t.user_attrs["proposal"]]
    assert proposed
    assert all(0.003 <= t.user_attrs["proposal"]["expected"] < 0.02 for t in proposed)
    assert 0 <= improvement_left(study, sampler) < 0.01
    said = why(study, sampler, proposed[-1].number)
    assert 0.003 <= said.explanation.low <= said.explanation.predicted <= said.explanation.high
    by_text = {t.user_attrs["activation"]: t.value for t in measured(finite)}
    for text, neighbour in zip(said.neighbours, said.explanation.neighbours, strict=True):
        if text in by_text:
            assert neighbour.value == by_text[text]
    assert said.as_json()["metric"]["direction"] == "minimize"


def test_commands_show_an_error_as_an_error(bo_act):
    code, out, err = bo_act("run", "pinn.toml")
    assert code == 0
    shows_no_percent(out + err)
    assert "relative error" in out
    assert re.search(r"search: \d+ of 12 +\d+ +0\.00\d+", err)
    bests = [float(v) for v in re.findall(r"search: \d+ of 12 +\d+ +(0\.00\d+)", err)]
    # What a log shows is better than all before, but for the last one.
    assert bests[:-1] == sorted(bests[:-1], reverse=True)
    found = {}
    for name in ("best", "status", "run"):
        code, out, err = bo_act(name, "pinn.toml")
        assert code == 0
        shows_no_percent(out + err)
        code, out, _ = bo_act(name, "pinn.toml", "--json")
        found[name] = json.loads(out)
        expected = {"name": "relative error", "direction": "minimize", "unit": "", "worst": None}
        assert found[name]["metric"] == expected
    trials = measured(own_trials(load_study(read_study("pinn.toml"))))
    least = min(trial.value for trial in trials)
    assert found["best"]["best"]["value"] == found["status"]["best"]["value"] == least
    tops = [one["value"] for one in found["best"]["top"]]
    assert tops == sorted(tops)
    code, out, err = bo_act("why", "pinn.toml", "11")
    assert code == 0
    shows_no_percent(out)
    assert re.search(r"expected +│ 0\.00\d+, 90% interval 0\.00\d+ to", out)
    assert json.loads(bo_act("why", "pinn.toml", "11", "--json")[1])["value"] > 0


def test_another_metric_is_refused(study, spec):
    for changes, said in {
        ("metric.name=x",): "metric was 'relative error (minimize)', is 'x (minimize)'",
        ("metric.direction=maximize",): "is 'relative error (maximize)'",
        ("metric.unit=percent",): "is 'relative error (minimize, percent)'",
        ("metric.worst=3",): "metric was",
    }.items():
        other = read_study("pinn.toml", dict(one.split("=") for one in changes) | {"trials": "20"})
        with pytest.raises(StorageError, match="was made with other settings") as caught:
            run_study(other)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    assert len(load_study(spec).trials) == 12


def test_the_dashboards_note_has_the_best(study):
    best = min(measured(own_trials(study)), key=lambda t: t.value)
    text = note(study, best)
    assert re.search(r"\*\*0\.00\d+\*\* \(relative error\), trial", text)
    shows_no_percent(text.split("```")[0])


def test_pruners_and_the_stopping_rule_follow_the_direction(spec):
    changes = {"name": "pruned", "pruner.name": "threshold", "pruner.upper": "0.5", "trials": "6"}
    pruned = (
        Path("mine.py")
        .read_text()
        .replace(
            "    return 0.003",
            "    if trial.should_prune(): raise optuna.TrialPruned\n    return 0.003",
        )
    )
    Path("mine.py").write_text("import optuna\n" + pruned)
    result = run_study(read_study("pinn.toml", changes | {"pruner.warmup_epochs": "0"}))
    # All whose second report, 1.01, came before their value.
    assert result.trials.pruned == 6 - result.trials.diverged > 0
    stop = {"name": "stopped", "stop.improvement": "1.0", "stop.least": "6", "trials": "30"}
    assert run_study(read_study("pinn.toml", stop)).trials.finished < 12


# --- a loop of one's own --------------------------------------------------------------------


def loop(space, study: optuna.Study, sampler, *, trials: int = 10) -> None:
    def objective(trial: optuna.Trial) -> float:
        import torch

        value = float(space.suggest(trial)(torch.tensor([0.7], dtype=torch.float64)))
        return 2.1033 + abs(value - 0.8)

    study.sampler = sampler
    study.optimize(objective, n_trials=trials)


@pytest.fixture(scope="module")
def classic():
    return bo_act.load_space("classic")


def test_a_sampler_notes_what_its_study_measures(classic):
    loss = bo_act.Metric("loss", "minimize", "nats")
    sampler = bo_act.ActivationSampler(classic, metric=loss, seed=0)
    study = optuna.create_study(direction="minimize", storage="sqlite:///own.db", study_name="own")
    loop(classic, study, sampler)
    assert metric_of(study) == loss
    # Another process, which is not told.
    again = optuna.load_study(study_name="own", storage="sqlite:///own.db")
    assert metric_of(again) == loss
    loop(classic, again, bo_act.ActivationSampler(classic, seed=0), trials=1)
    other = bo_act.ActivationSampler(classic, metric=bo_act.Metric("error", "minimize"))
    with pytest.raises(SearchError, match=r"measures loss \(minimize, nats\), not "):
        loop(classic, again, other, trials=1)


def test_a_metric_of_another_direction_is_refused(classic):
    study = optuna.create_study(direction="minimize")
    sampler = bo_act.ActivationSampler(classic, metric=bo_act.Metric("accuracy"))
    with pytest.raises(SearchError, match="created to minimize"):
        loop(classic, study, sampler)
    assert not [t for t in study.trials if not t.state.is_finished()]


def test_without_a_word_it_is_a_value_in_the_studys_direction(classic):
    study = optuna.create_study(direction="minimize")
    assert metric_of(study) == Metric("value", "minimize")
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["loss"])
    assert metric_of(study) == Metric("loss", "minimize")


def test_a_known_worst_value_counts_for_what_diverged(classic):
    metric = bo_act.Metric("loss", "minimize", worst=50.0)
    sampler = bo_act.ActivationSampler(classic, metric=metric)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    ends = iter([2.0, math.inf, math.nan, 3.0])

    def objective(trial: optuna.Trial) -> float:
        classic.suggest(trial)
        return next(ends)

    study.optimize(objective, n_trials=4)
    assert sampler.view(study).observations.values.tolist() == [-2.0, -50.0, -50.0, -3.0]
    # One who is not told reads it in the study.
    other = bo_act.ActivationSampler(classic)
    assert other.view(study).observations.values.tolist() == [-2.0, -50.0, -50.0, -3.0]
