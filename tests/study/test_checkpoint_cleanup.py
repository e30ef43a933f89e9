"""Checkpoints of trials that failed: kept as long as they may be of use, and no longer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from small_studies import SPACE, make

from bo_act.activations.expressions import parse
from bo_act.study.running.checkpoint_cleanup import clean_up_checkpoints
from bo_act.study.running.runner import run_study
from bo_act.study.storage.opening import load_study
from bo_act.tasks.task import Task

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("few.toml").write_text(SPACE)


def test_no_checkpoint_stays_when_a_function_is_given_up(monkeypatch):
    monkeypatch.setattr("bo_act.training.checkpoint.WORTH_SAVING", 0.0)
    monkeypatch.setattr("bo_act.training.checkpoint.SAVING_SHARE", float("inf"))
    train, kept, later = Task.train, [], []
    folder = Path("runs/given_up/checkpoints")

    def lost(self, expression, *, report, **options):
        def told(epoch, accuracy):
            report(epoch, accuracy)
            if str(expression) == "tanh(x)" and epoch == 1:
                kept.append(len(list(folder.iterdir())))
                raise RuntimeError("the device is lost")
            if len(kept) == 2:
                later.append(len(list(folder.iterdir())))

        return train(self, expression, report=told, **options)

    monkeypatch.setattr(Task, "train", lost)
    settings = {"confirm": {"seeds": 0}, "features": {"fim": False}}
    spec = make(name="given_up", trials=3, max_retries=1, **settings)
    result = run_study(spec)
    assert (result.trials.complete, result.trials.failed) == (3, 2)
    assert kept == [1, 1]  # the second try has what the first one left
    assert later == [1] * 6  # of two functions in training, three epochs each
    assert list(folder.iterdir()) == []


def test_checkpoints_that_may_be_gone_on_from_are_kept():
    spec = make(trials=2, max_retries=1, confirm={"seeds": 0}, features={"fim": False})
    run_study(spec)
    task, study = Task.load(spec), load_study(spec)
    checkpoint = task.checkpoint(parse("erf(x)"), seed=spec.seed)
    more = replace(task, spec=spec.model_copy(update={"trials": 9}))

    def add(state: TrialState) -> None:
        attributes = {"activation": "erf(x)"}
        study._storage.create_new_trial(
            study._study_id, create_trial(state=state, user_attrs=attributes)
        )

    def stays(task: Task) -> bool:
        checkpoint.save({})
        clean_up_checkpoints(task, study)
        return checkpoint.path.exists()

    assert stays(task)  # of no trial of this study
    add(TrialState.FAIL)
    assert stays(more)  # it is tried again
    assert not stays(task)  # the study is done
    add(TrialState.FAIL)
    assert not stays(more)  # no retries are left
    add(TrialState.RUNNING)
    assert stays(task)
    assert stays(more)


def test_what_a_killed_worker_left_goes_at_the_end():
    settings = {"max_retries": 1, "confirm": {"seeds": 0}, "features": {"fim": False}}
    run_study(make(trials=2, **settings))
    spec = make(trials=3, **settings)
    study = load_study(spec)
    given_up = create_trial(state=TrialState.FAIL, user_attrs={"activation": "erf(x)"})
    study._storage.create_new_trial(study._study_id, given_up)
    checkpoint = Task.load(spec).checkpoint(parse("erf(x)"), seed=spec.seed)
    checkpoint.save({})
    run_study(spec)
    assert "erf(x)" not in [
        trial.user_attrs["activation"] for trial in study.trials if trial.values
    ]
    assert not checkpoint.path.exists()
