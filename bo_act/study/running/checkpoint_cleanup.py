"""Deletion of checkpoints that no training will resume from."""

from __future__ import annotations

from collections import Counter

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.study.storage.trials import own_trials
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.task import Task


def clean_up_checkpoints(task: Task, study: optuna.Study) -> None:
    """Delete the checkpoints of failed trials whose functions will not be tried again.

    These are functions that failed more than ``max_retries`` times and, once the study has all its
    trials, every failed function. A function in training keeps its checkpoint.
    """
    if task.objective is not None:
        return  # it manages its own files
    trials = [trial for trial in own_trials(study) if _text(trial)]
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    running = {_text(trial) for trial in trials if trial.state == TrialState.RUNNING}
    done = sum(t.state in (TrialState.COMPLETE, TrialState.PRUNED) for t in trials)
    failures = Counter(map(_text, failed))
    for trial in failed:
        text = _text(trial)
        over = done >= task.spec.trials or failures[text] > task.spec.max_retries
        if over and text not in running:
            configuration = Configuration.of_trial(trial, task.spec)
            functions, settings = configuration.trained, configuration.settings
            task.checkpoint(functions, seed=task.spec.seed, settings=settings).delete()


def _text(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("activation", ""))
