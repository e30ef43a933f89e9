"""A user's own training function."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from pages import ROOT, blocks
from small_studies import STORAGE

from bo_act.benchmark.build import build_benchmark
from bo_act.errors import SpecError, StorageError
from bo_act.specs import StudySpec
from bo_act.specs.files import read_study
from bo_act.study.results.summary import read_result
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = """
name = "few"
schemas = ["binary(unary(x),unary(x))"]
unary = ["identity", "tanh", "relu", "exp", "erf"]
binary = ["add", "mul", "max"]
baselines = ["relu(x)", "tanh(x)"]
"""

HEAD = "import math, optuna, signal, torch, bo_act\n"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


def make(body: str, head: str = "def objective(trial, activation):", **changes) -> StudySpec:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    Path("mine.py").write_text(f"{HEAD}\n\n{head}\n{lines}")
    content = {"name": "own", "space": "few.toml", "trials": 6, "objective": "mine.py:objective"}
    content["storage"] = STORAGE
    return StudySpec.model_validate(content | changes)


VALUE = "float(activation()(torch.tensor([0.3])))"


def test_the_example_of_the_docs_runs():
    page = ROOT / "docs/how_to/own_objective.md"
    train, network = blocks(page, "python")
    study, features = blocks(page, "toml")
    assert "STEPS = 300" in train
    train = train.replace("STEPS = 300", "STEPS = 100")
    Path("my_train.py").write_text(f"{train}\n\n{network}")
    Path("poisson.toml").write_text(f"{study}\n{features}")
    spec = read_study("poisson.toml", {"trials": "7", "space": "few.toml", "storage": STORAGE})
    result = run_study(spec)
    assert result.trials.finished == 7
    assert result.best.value > 0
    assert result.confirmed == ()
    curves = [len(t.intermediate_values) for t in load_study(spec).trials]
    assert max(curves) == 2
    assert Task.load(spec).features().provenance["layers"] == ("0", "2", "4")
    assert read_result(spec).best == result.best
    json.dumps(result.as_json(), allow_nan=False)


def test_values_and_functions_are_the_objectives():
    spec = make(f"return {VALUE}")
    result = run_study(spec)
    assert result.trials.complete == 6
    assert len({t.user_attrs["activation"] for t in load_study(spec).trials}) == 6
    assert result.baseline.value == pytest.approx(0.3)
    # Without a network, output features are all that is known.
    assert Task.load(spec).features().blocks.keys() == {"outputs", "moments"}


def test_more_trials_go_on_and_a_changed_file_is_refused():
    spec = make(f"return {VALUE}")
    run_study(spec)
    more = spec.model_copy(update={"trials": 8})
    assert run_study(more).trials.complete == 8
    make(f"return 2 * {VALUE}")
    with pytest.raises(StorageError, match="the objective's file changed since"):
        run_study(spec.model_copy(update={"trials": 9}))


@pytest.mark.parametrize("how", ["raise bo_act.Diverged", "return math.nan", "return -math.inf"])
def test_a_diverged_function_is_a_result(how):
    spec = make(f"if '{{}}'.format(activation()).count('tanh'): {how}\nreturn {VALUE}")
    result = run_study(spec)
    trials = load_study(spec).trials
    assert result.trials.complete == 6
    assert result.trials.failed == 0
    assert result.trials.diverged >= 1
    for trial in trials:
        diverged = "tanh" in trial.user_attrs["activation"]
        assert trial.constraints == {"diverged": float(diverged)}
        assert diverged == (trial.user_attrs["status"] == "diverged")
        assert diverged == (trial.value == float("-inf"))
    assert "tanh" not in result.best.activation


def test_a_lost_device_is_tried_again():
    spec = make(f"if trial.number == 1: raise RuntimeError('the device\\nis lost')\nreturn {VALUE}")
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (6, 1)
    trials = load_study(spec).trials
    assert trials[1].user_attrs["failure"]["message"] == "the device is lost"
    assert trials[2].user_attrs["activation"] == trials[1].user_attrs["activation"]


def test_an_error_in_the_file_gives_the_trial_back():
    spec = make(f"1 / 0\nreturn {VALUE}")
    with pytest.raises(SpecError, match=r"mine\.py: the objective failed: ZeroDiv.*line 5"):
        run_study(spec)
    assert [trial.state for trial in load_study(spec).trials] == [TrialState.RUNNING]
    make(f"return {VALUE}")
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (6, 0)


def test_a_trial_that_is_taken_over_reports_no_step_twice(recwarn):
    body = (
        "for step in range(4):\n"
        "    trial.report(step, step)\n"
        "    if trial.number == 1 and step == 2 and not open('tried', 'a').tell():\n"
        "        open('tried', 'a').write('x')\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        f"return {VALUE}"
    )
    spec = make(body)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    with pytest.raises(KeyboardInterrupt):
        run_study(spec)
    run_study(spec)
    assert not [one for one in recwarn if "ignored" in str(one.message)]
    trials = load_study(spec).trials
    assert len(trials) == 6
    assert all(trial.intermediate_values == {k: float(k) for k in range(4)} for trial in trials)


def test_what_it_asks_for_by_name_it_gets():
    spec = make(
        "assert seed == 4 and device.type == 'cpu' and training.epochs == 7\n"
        "assert settings == {'training.learning_rate': training.learning_rate}\n"
        "net = network(activation)\n"
        "images, _ = data.train.take(torch.arange(3))\n"
        "assert net(images).shape == (3, 10)\n"
        "return training.learning_rate",
        "def objective(trial, activation, *, seed, device, training, settings, network, data):",
        seed=4,
        training={"epochs": 7, "device": "cpu"},
        model={"name": "mlp", "options": {"widths": [8]}},
        data={"name": "digits", "train": 200},
        features={"batch_size": 16, "quantiles": 8},
        parameters={"training.learning_rate": {"low": 0.001, "high": 0.1, "log": True}},
    )
    result = run_study(spec)
    assert result.trials.complete == 6
    assert result.confirmed == ()
    assert 0.05 <= result.best.value <= 0.1
    assert "fim" in Task.load(spec).features().blocks
    with pytest.raises(SpecError, match="its own objective"):
        build_benchmark(spec, seeds=1)


@pytest.mark.parametrize(
    ("body", "head", "says"),
    [
        ("return 0.0", "def other(trial, activation):", "got no function 'objective'"),
        ("return 0.0", "objective = 3\ndef other():", "got no function 'objective'"),
        ("return 'good'", "def objective(trial, activation):", "perhaps 'test', got str"),
        ("return None", "def objective(trial, activation):", "got NoneType"),
        (
            "return 0",
            "def objective(trial, activation, *, data):",
            "asks for data; .* seed, device",
        ),
        ("return 0", "1 / 0\ndef objective(trial, activation):", "cannot be imported: ZeroDiv"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(body, head, says):
    with pytest.raises(SpecError, match=says) as error:
        run_study(make(body, head))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there():
    spec = make("return 0")
    Path("mine.py").unlink()
    with pytest.raises(SpecError, match=r"'mine\.py' cannot be read"):
        run_study(spec)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({}, "model\n  Field required"),
        ({"model": {"name": "mlp"}}, "data\n  Field required"),
        ({"objective": "a.py:f", "data": {"name": "digits"}}, "model\n  Field required"),
        ({"model": None, "data": None}, "missing key 'model'"),
        ({"objective": "a.py:f", "model": {"name": "mlp"}, "data": None}, "missing key 'data'"),
        ({"objective": "a.py"}, "pattern"),
    ],
)
def test_something_has_to_be_trained(content, says):
    with pytest.raises(ValueError, match=says):
        StudySpec.model_validate({"name": "own", **content})


@pytest.mark.slow
def test_what_workers_warn_of_is_told_by_their_parent(capfd):
    """Written by themselves, it would stand in the middle of what the parent draws."""
    spec = make("import warnings\nwarnings.warn('a thing to know')\nreturn 0.5", trials=2)
    with pytest.warns(UserWarning, match=r"^a thing to know$"):
        run_study(spec, workers=2)
    assert capfd.readouterr().err == ""
