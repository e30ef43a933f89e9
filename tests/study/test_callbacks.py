"""Callbacks and the dashboard: what is told of trials, read back by what reads it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from urllib.request import urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from bo_act.errors import MissingExtraError, SpecError
from bo_act.metrics import ACCURACY
from bo_act.specs import StudySpec
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.runner import run_study
from bo_act.study.storage.metric import note_metric

SPEC = {
    "name": "told",
    "space": "classic",
    "trials": 3,
    "initial": 0,
    "model": {"name": "mlp", "options": {"widths": [8]}},
    "data": {"name": "digits", "train": 200, "validation": 100},
    "training": {"epochs": 2, "threads": 1, "device": "cpu"},
    "features": {"fim": False},
    "confirm": {"seeds": 0},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def spec(*callbacks: str) -> StudySpec:
    return StudySpec.model_validate(SPEC | {"callbacks": callbacks})


def needs(package: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


def study_of(*values: float, storage=None) -> optuna.Study:
    """A study with trials that have curves, as a runner leaves them."""
    study = optuna.create_study(study_name="told", storage=storage, direction="maximize")
    note_metric(study, ACCURACY)
    texts = ("tanh(x)", "relu(x)", "mul(erf(x),sigmoid(x))")
    for number, value in enumerate(values):
        study.add_trial(
            create_trial(
                value=value,
                params={"left": texts[number], "training.learning_rate": 0.1},
                distributions={
                    "left": CategoricalDistribution(texts),
                    "training.learning_rate": FloatDistribution(0.01, 1.0, log=True),
                },
                intermediate_values={0: value / 2, 1: value},
                user_attrs={
                    "activation": texts[number], "train_loss": [2.0, 1.0], "seconds": 1.5,
                    "status": "completed",
                },
            )
        )  # fmt: skip
    return study


# --- calling them ---------------------------------------------------------------------------


def test_a_callback_of_a_file_and_one_of_the_caller_are_told_every_trial():
    Path("mine.py").write_text(
        "def log(study, trial):\n"
        "    with open('log.txt', 'a') as file:\n"
        "        file.write(f'{study.study_name} {trial.number} {trial.state.name}\\n')\n"
    )
    told = []
    run_study(spec("mine.py:log"), callbacks=[lambda _, trial: told.append(trial)])
    assert Path("log.txt").read_text() == "".join(f"told {n} COMPLETE\n" for n in range(3))
    assert [trial.number for trial in told] == [0, 1, 2]
    assert all(trial.value is not None and trial.user_attrs["activation"] for trial in told)


def test_one_that_fails_is_reported_once_and_loses_no_trial():
    calls = []

    def broken(_, trial):
        calls.append(trial.number)
        raise ZeroDivisionError("on purpose")

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = run_study(spec(), callbacks=[broken])
    ours = [str(one.message) for one in said if "callback" in str(one.message)]
    assert result.trials.complete == 3
    assert calls == [0, 1, 2]
    assert len(ours) == 1
    assert "the callback broken failed at trial 0" in ours[0]
    assert "ZeroDivisionError: on purpose" in ours[0]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorbord", "did you mean 'tensorboard'?"),
        ("nothing.py:log", "'nothing.py' cannot be read"),
        ("mine.py:lok", "did you mean 'log'?"),
        ("broken.py:log", "ValueError: no"),
    ],
)
def test_a_callback_that_is_none_is_said_before_anything_is_trained(name, says):
    Path("mine.py").write_text("def log(study, trial): pass\n")
    Path("broken.py").write_text("raise ValueError('no')\n")
    with pytest.raises(SpecError, match="callbacks: ") as error:
        run_study(spec(name))
    assert says in str(error.value)
    assert not Path("runs").exists()


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'bo-act\[wandb\]'"):
        Callbacks.of(spec("wandb"))


# --- what others read -----------------------------------------------------------------------


def test_tensorboard_reads_curves_settings_and_results():
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study = study_of(0.5, 0.75)
    told = Callbacks.of(spec("tensorboard"))
    for trial in study.trials:
        told(study, trial)
    runs = sorted(Path("runs/told/tensorboard").iterdir())
    assert [run.name for run in runs] == ["trial-0000", "trial-0001"]
    events = EventAccumulator(str(runs[1])).Reload()
    read = {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }
    assert read["validation accuracy"] == [(0, 0.375), (1, 0.75)]
    assert read["train loss"] == [(0, 2.0), (1, 1.0)]
    assert read["value"] == [(1, 0.75)]
    assert "_hparams_/session_start_info" in events.summary_metadata
    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"relu(x)" in content


def test_mlflow_reads_curves_settings_and_results(monkeypatch):
    needs("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = study_of(0.5, 0.75)
    told = Callbacks.of(spec("mlflow"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for trial in study.trials:
            told(study, trial)
    assert not [one for one in said if "the callback" in str(one.message)]
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri="sqlite:///runs/told/mlflow.db")
    experiment = client.get_experiment_by_name("told")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"trial-0000", "trial-0001"}
    run = runs["trial-0001"]
    assert run.data.params["activation"] == "relu(x)"
    assert run.data.metrics["value"] == 0.75
    curve = client.get_metric_history(run.info.run_id, "validation accuracy")
    assert sorted((m.step, m.value) for m in curve) == [(0, 0.375), (1, 0.75)]
    assert run.info.status == "FINISHED"


def test_weights_and_biases_keeps_an_offline_run_a_trial(monkeypatch):
    needs("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    study = study_of(0.5, 0.75)
    told = Callbacks.of(spec("wandb"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for trial in study.trials:
            told(study, trial)
    assert not [str(one.message) for one in said if "the callback" in str(one.message)]
    until = time.monotonic() + 60  # the client's own process writes, and may be behind
    while True:
        runs = sorted(Path("runs/told/wandb").glob("offline-run-*/*.wandb"))
        kept = [run.read_bytes() for run in runs]
        complete = [one for one in kept if b"relu(x)" in one and b"validation accuracy" in one]
        if len(kept) == 2 and complete:
            break
        assert time.monotonic() < until, [len(one) for one in kept]
        time.sleep(0.2)


# --- the dashboard --------------------------------------------------------------------------


def test_the_note_is_of_the_best_and_changes_with_it():
    needs("optuna_dashboard")
    from optuna_dashboard import get_note

    study = study_of(0.5)
    told = Callbacks.of(spec())
    told(study, study.trials[0])
    assert "tanh(x)" in get_note(study)
    study.add_trial(study_of(0.5, 0.3).trials[1])
    told(study, study.trials[1])
    assert "relu(x)" not in get_note(study)
    study.add_trial(study_of(0.5, 0.3, 0.9).trials[2])
    told(study, study.trials[2])
    note = get_note(study)
    assert "**90.00%** (accuracy)" in note
    assert "f(x) = erf(x) * sigmoid(x)" in note
    assert "`training.learning_rate` = 0.1" in note
    assert note.count("*") > 50  # a graph


class _Silent(WSGIRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(storage):
    from optuna_dashboard import wsgi

    server = make_server("127.0.0.1", 0, wsgi(storage), handler_class=_Silent)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def test_a_browser_shows_the_note_the_slots_and_the_attributes():
    needs("optuna_dashboard")
    needs("playwright")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    run_study(spec())
    storage = optuna.storages.get_storage("sqlite:///runs/told/study.db")
    best = optuna.load_study(study_name="told", storage=storage).best_trial
    errors, outside = [], []
    with served(storage) as address, sync_playwright() as player:
        chromium = player.chromium.launch(
            executable_path=browser,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        page = chromium.new_page(viewport={"width": 1300, "height": 1000})
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: outside.append(r.url) if address not in r.url else None)
        page.goto(f"{address}/dashboard/studies/1/note")
        page.get_by_text(f"(accuracy), trial {best.number}").wait_for(timeout=60_000)
        if pictures := os.environ.get("BO_ACT_PICTURES"):
            page.screenshot(path=f"{pictures}/dashboard_note.png")
        note = page.inner_text("body")
        assert best.user_attrs["activation"] in note
        assert page.locator("pre").first.inner_text().startswith("f(x) = ")
        page.goto(f"{address}/dashboard/studies/1/trials?numbers={best.number}")
        page.get_by_text("train_loss").first.wait_for(timeout=60_000)
        trial = page.inner_text("body")
        for name in [*best.params, "activation", "seconds", "status"]:
            assert name in trial
        chromium.close()
    assert errors == []
    assert [url for url in outside if not url.startswith(("data:", "blob:"))] == []


def test_the_dashboards_own_api_has_the_curves():
    needs("optuna_dashboard")
    study = study_of(0.5, 0.75, storage=optuna.storages.InMemoryStorage())
    with served(study._storage) as address, urlopen(f"{address}/api/studies/0", timeout=30) as got:
        trials = json.load(got)["trials"]
    assert [t["state"] for t in trials] == [TrialState.COMPLETE.name.capitalize()] * 2
    assert [v["value"] for v in trials[1]["intermediate_values"]] == [0.375, 0.75]
