"""Checkpoints that no training will go on from any more."""

from __future__ import annotations

from collections import Counter

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.study.storage.trials import own_trials
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.task import Task


def clean_up_checkpoints(task: Task, study: optuna.Study) -> None:
    """Delete the checkpoints of failed trials whose functions are not tried again.

    Those are functions that failed more than ``max_retries`` times, and all that failed where the
    study has its trials. A function that is in training keeps its checkpoint.
    """
    if task.objective is not None:
        return  # it sees to its own files
    trials = [trial for trial in own_trials(study) if _text(trial)]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    running = {_text(trial) for trial in trials if trial.state == TrialState.RUNNING}
    done = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    failures = Counter(map(_text, failed))
    for trial in failed:
        text = _text(trial)
        over = done >= task.spec.trials or failures[text] > task.spec.max_retries
        if over and text not in running:
            one = Configuration.of_trial(trial, task.spec)
            task.checkpoint(one.trained, seed=task.spec.seed, settings=one.settings).delete()


def _text(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("activation", ""))
