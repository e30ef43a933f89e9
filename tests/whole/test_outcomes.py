"""Studies in which there is nothing to show, through every command that shows something."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from studies_of_tests import FEW

from bo_act.activations.expressions import canonical, parse
from bo_act.benchmark.build import assemble
from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.spaces.space import load_space
from bo_act.specs.files import read_study
from bo_act.study.results.confirmation import _attribute
from bo_act.study.results.summary import read_result
from bo_act.study.results.verdict import verdict
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study, open_storage
from bo_act.study.storage.recorded_settings import SPEC
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)

STUDY = """
name = "NAME"
space = "few.toml"
trials = 4
initial = 0
storage = "all.log"
[model]
name = "mlp"
options = { widths = [4] }
[data]
name = "digits"
train = 100
validation = 100
[training]
epochs = 1
batch_size = 50
threads = 1
device = "cpu"
[features]
fim = false
[confirm]
top = 1
seeds = 2
baselines = ["relu(x)", "gelu(x)"]
"""

TEXTS = ("relu(x)", "tanh(x)", "exp(x)", "erf(x)")


def trial(number: int, state: str, *, value: float | None = 0.5, **attributes) -> FrozenTrial:
    """A trial of the space; ``diverged`` is a state here."""
    text = TEXTS[number]
    space = load_space("few.toml")
    params, slots = space.catalogue.params(space.catalogue.index(text)), space.distributions
    done = {"complete": TrialState.COMPLETE, "diverged": TrialState.COMPLETE}
    attributes = {"activation": text, "proposal": {"by": "baseline"}, **attributes}
    if state in done:
        attributes["status"] = "diverged" if state == "diverged" else "completed"
    value = {"complete": value, "diverged": 0.1 if value == 0.5 else value}.get(state)
    return create_trial(
        state=done.get(state) or TrialState[state],
        value=value,
        params=params,
        distributions={name: CategoricalDistribution(slots[name].choices) for name in params},
        user_attrs=attributes,
        intermediate_values={0: 0.1} if state == "PRUNED" else {},
    )


REASON = {"failure": {"type": "RuntimeError", "message": "[bad]", "file": "net.py", "line": 3}}

STATES = {
    "empty": [],
    "diverged": [("diverged", {"train_loss": [2.0]})] * 4,
    "collapsed": [("diverged", {"collapsed": True, "train_loss": [2.0]})] * 3,
    "infinite": [("diverged", {"value": -math.inf})] * 3,
    "failed": [("FAIL", REASON)] * 3,
    "unknown": [("FAIL", {})],
    "pruned": [("PRUNED", {})] * 3,
    "running": [("RUNNING", {})],
    "back": [("RUNNING", REASON)],
    "mixed": [("diverged", {}), ("FAIL", REASON), ("PRUNED", {})],
    "single": [("complete", {})],
    "equal": [("complete", {})] * 4,
    "relu_failed": [("FAIL", REASON), ("complete", {}), ("complete", {"value": 0.6})],
    "relu_diverged": [("diverged", {}), ("complete", {}), ("complete", {"value": 0.6})],
}

LACKING = {
    "empty": "No function has been evaluated yet.",
    "diverged": "All 4 functions diverged (the training loss was not finite by epoch 2), so "
    "there is no result: lower training.learning_rate, or set training.gradient_clip.",
    "collapsed": "All 3 functions diverged (accuracy and loss stayed at chance), so",
    "infinite": "All 3 functions diverged",
    "failed": "All 3 trials failed, so there is no result",
    "unknown": "The only trial failed, so there is no result",
    "pruned": "All 3 functions were pruned, so there is no result: let the pruner wait",
    "running": "No function has been evaluated yet. 1 is in training.",
    "back": "No function has been evaluated yet. 1 is in training.",
    "mixed": "No function has a value: 1 diverged, 1 pruned, 1 failed;",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One storage with a study for each state."""
    place = tmp_path_factory.mktemp("outcomes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("few.toml").write_text(FEW)
        Path("study.toml").write_text(STUDY)
        for name, trials in STATES.items():
            study = optuna.create_study(
                study_name=name, storage=open_storage("all.log"), direction="maximize"
            )
            study.set_user_attr(SPEC, json.loads(spec_of(name).model_dump_json()))
            study.add_trials(
                [trial(number, state, **more) for number, (state, more) in enumerate(trials)]
            )
    return place


@pytest.fixture(autouse=True)
def _folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def spec_of(name: str):
    return read_study("study.toml", {"name": name})


@pytest.mark.parametrize("name", STATES)
def test_results_of_any_state_can_be_shown(name, bo_act):
    chosen = ("study.toml", "--set", f"name={name}")
    code, told, _ = bo_act("best", *chosen)
    assert code == 0
    if name in LACKING:
        assert LACKING[name] in " ".join(told.split())
        assert "No function has been evaluated" in LACKING[name] or "evaluated" not in told
    for command in ("best", "status"):
        code, shown, _ = bo_act(command, *chosen, "--json")
        found = json.loads(shown)
        assert code == 0
        assert (found["best"] is None) == (name in LACKING)
        assert found["lacking"].startswith(LACKING.get(name, ""))
        assert sum(one["count"] for one in found["failures"]) == sum(
            state == "FAIL" or bool(more.get("failure")) for state, more in STATES[name]
        )
    assert bo_act("status", *chosen)[0] == 0
    read_result(spec_of(name))._repr_html_()
    for number in range(min(2, len(STATES[name]))):
        code, told, _ = bo_act("why", *chosen, str(number))
        assert code == 0
        code, told, _ = bo_act("why", *chosen, str(number), "--json")
        assert json.loads(told)["activation"] == TEXTS[number]


@pytest.mark.parametrize("name", ["empty", "infinite", "back", "mixed", "single", "relu_failed"])
def test_reports_of_any_state_can_be_written(name, bo_act):
    code, _, told = bo_act(
        "report", "study.toml", "--set", f"name={name}", "-o", "report.html", "-q"
    )
    assert (code, told) == (0, "")
    page = Path("report.html").read_text()
    if name in LACKING:
        assert LACKING[name].partition(",")[0] in page
    assert ("What failed" in page) == any(
        state == "FAIL" or more.get("failure") for state, more in STATES[name]
    )


@pytest.mark.parametrize("name", ["empty", "diverged", "failed", "single"])
@pytest.mark.parametrize("kind", ["progress", "map", "gallery", "spectra", "calibration"])
def test_figures_are_drawn_or_refused_on_one_line(name, kind, bo_act):
    code, _, told = bo_act(
        "plot", kind, "study.toml", "--set", f"name={name}", "-o", f"{kind}.svg", "-q"
    )
    assert code in (0, 2)
    assert told.count("\n") <= 1
    assert "Traceback" not in told


@pytest.mark.parametrize("name", ["diverged", "failed", "pruned", "empty"])
def test_studies_without_values_are_no_sources_of_a_warm_start(name, bo_act):
    source = STUDY.replace("NAME", name)
    Path("source.toml").write_text(source)
    Path("other.toml").write_text(STUDY.replace("NAME", f"after_{name}"))
    code, _, told = bo_act("run", "other.toml", "-q", "--warm-start", "source.toml")
    assert code in (0, 2)
    assert "Traceback" not in told
    assert told.count("\n") <= 1


def test_baselines_without_a_value_are_named_in_the_tables(bo_act):
    for name, says in (("relu_failed", "failed"), ("relu_diverged", "diverged")):
        told = " ".join(bo_act("best", "study.toml", "--set", f"name={name}")[1].split())
        assert f"relu(x) in the same search: {says}" in told
        assert f"The baseline relu(x) {says} in the search" in told


# --- confirmations --------------------------------------------------------------------------


def confirmed(name: str, rows: dict[str, list[tuple[str, float]]]) -> None:
    """Note fresh-seed runs in a study: (status, accuracy) of each seed."""
    study = load_study(spec_of(name))
    for text, runs in rows.items():
        one = Configuration({"": canonical(parse(text))}, {})
        for seed, (status, accuracy) in enumerate(runs):
            study.set_user_attr(
                _attribute(one, seed),
                {
                    "activation": text, "seed": seed, "test": accuracy, "validation": accuracy,
                    "status": status, "seconds": 1.0,
                },
            )  # fmt: skip


OK, BAD = ("completed", 0.9), ("diverged", 0.1)


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        # What was found and the baselines alike: intervals without any width.
        (
            "zero",
            {"erf(x)": [OK] * 2, "relu(x)": [OK] * 2, "gelu(x)": [OK] * 2},
            "the interval includes zero",
        ),
        (
            "nothing",
            {"erf(x)": [BAD] * 2, "relu(x)": [BAD] * 2, "gelu(x)": [BAD] * 2},
            "all training runs of the best functions diverged",
        ),
        (
            "found",
            {"erf(x)": [BAD] * 2, "relu(x)": [OK] * 2, "gelu(x)": [OK] * 2},
            "all training runs of the best functions diverged",
        ),
        (
            "relu",
            {"erf(x)": [OK, ("completed", 0.91)], "relu(x)": [BAD] * 2, "gelu(x)": [OK, BAD]},
            "erf(x), the best by validation, is better than ReLU",
        ),
        (
            "alike",
            {"erf(x)": [("completed", 0.91)] * 2, "relu(x)": [OK] * 2, "gelu(x)": [OK] * 2},
            "against ReLU with every seed alike",
        ),
        (
            "half",
            {"erf(x)": [OK], "relu(x)": [OK], "gelu(x)": [OK]},
            "one seed gives no interval",
        ),
    ],
)
def test_confirmations_of_any_state_can_be_shown(name, rows, says, bo_act):
    study = optuna.create_study(
        study_name=f"c_{name}", storage=open_storage("all.log"), direction="maximize"
    )
    study.add_trials([trial(0, "complete"), trial(2, "diverged"), trial(3, "complete", value=0.9)])
    confirmed(f"c_{name}", rows)
    chosen = ("study.toml", "--set", f"name=c_{name}")
    code, told, _ = bo_act("best", *chosen)
    assert code == 0
    assert says in " ".join(told.split())
    code, told, _ = bo_act("best", *chosen, "--json")
    assert len(json.loads(told)["confirmed"]) == 3
    code, _, told = bo_act("report", *chosen, "-o", "report.html", "-q")
    assert (code, told) == (0, "")
    assert says in Path("report.html").read_text()
    read_result(spec_of(f"c_{name}"))._repr_html_()


def test_baselines_that_were_confirmed_for_nothing_are_no_verdict(bo_act):
    """As an earlier version left it, which trained them although all had diverged."""
    confirmed("diverged", {"relu(x)": [OK] * 2, "gelu(x)": [OK] * 2})
    assert verdict(read_result(spec_of("diverged")).confirmed) is None
    for command in (["best"], ["status"], ["report", "-o", "r.html", "-q"]):
        assert bo_act(command[0], "study.toml", "--set", "name=diverged", *command[1:])[0] == 0


# --- whole runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diverged", "pruned"])
def test_nothing_is_confirmed_where_nothing_was_found(name, bo_act):
    trials = len(STATES[name])
    code, told, said = bo_act(
        "run", "study.toml", "--set", f"name={name}", "--set", f"trials={trials}"
    )
    assert code == 0
    assert LACKING[name] in " ".join(told.split())
    assert "confirmation" not in said


def test_a_search_in_which_everything_diverges_says_so(bo_act):
    Path("few_hot.toml").write_text(
        'name = "few_hot"\nexpressions = ["relu(x)", "square(x)", "exp(x)", "identity(x)"]\n'
        'baselines = ["relu(x)"]\n'
    )
    content = STUDY.replace("NAME", "hot").replace("few.toml", "few_hot.toml")
    Path("hot.toml").write_text(content.replace("epochs = 1", "epochs = 3"))
    code, told, said = bo_act("run", "hot.toml", "--set", "training.learning_rate=1e30")
    assert code == 0
    assert "All 4 functions diverged (the training loss was not finite by epoch " in told
    assert "lower training.learning_rate" in told
    assert "confirmation" not in said


def test_an_objective_whose_values_are_all_infinite_says_so(bo_act):
    Path("mine.py").write_text("def objective(trial, activation):\n    return float('nan')\n")
    Path("own.toml").write_text(
        'name = "own"\nspace = "few.toml"\ntrials = 4\nobjective = "mine.py:objective"\n'
        'storage = "own.log"\n'
    )
    code, told, _ = bo_act("run", "own.toml", "-q")
    assert code == 0
    assert "All 4 functions diverged (the values are not finite)" in " ".join(told.split())
    for command in (["best", "--json"], ["status", "--json"], ["why", "1", "--json"]):
        code, told, _ = bo_act(command[0], "own.toml", *command[1:])
        assert code == 0
        json.loads(told)
    assert bo_act("report", "own.toml", "-o", "r.html", "-q")[0] == 0


def test_a_benchmark_in_which_everything_diverged_can_be_compared_on(bo_act):
    task = Task.load(spec_of("benchmark"))
    runs = [
        {
            "index": index, "seed": seed, "status": "diverged", "seconds": 1.0, "curve": [],
            "train_value": 0.1, "validation_value": 0.1, "test_value": 0.1,
            "train_loss": None, "validation_loss": None, "test_loss": None,
        }
        for index in range(len(task.space.catalogue))
        for seed in range(2)
    ]  # fmt: skip
    save(assemble(task, runs, task.features(), seeds=2, name="hot"), Path("hot.parquet"))
    assert np.isnan(open_benchmark("hot.parquet").runs["test_loss"]).all()
    code, _, told = bo_act("bench", "show", "hot.parquet")
    assert code in (0, 2)
    assert "Traceback" not in told
    code, _, told = bo_act(
        "compare", "-b", "hot.parquet", "-m", "default", "-m", "random",
        "--evaluations", "5", "--seeds", "2", "-q", "--report", "compared.html",
    )  # fmt: skip
    assert code in (0, 2)
    assert "Traceback" not in told


def test_a_study_of_one_trial_is_confirmed_and_shown(bo_act):
    Path("one.toml").write_text(STUDY.replace("NAME", "one").replace("trials = 4", "trials = 1"))
    result = run_study(read_study("one.toml"))
    assert result.trials.complete == 1
    assert verdict(result.confirmed).kind == "reference"
    said = verdict(result.confirmed).text
    assert said == "ReLU itself has the best fresh validation accuracy of the functions found."
    for command in (["best"], ["status"], ["why", "0"], ["report", "-o", "r.html", "-q"]):
        assert bo_act(command[0], "one.toml", *command[1:])[0] == 0
