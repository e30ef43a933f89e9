"""Training one trial and telling the study what came of it."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from functools import partial

import optuna
import torch
from optuna.trial import Trial, TrialState

from bo_act.errors import BoActError
from bo_act.study.claims import TrialTaken
from bo_act.study.objective import Objective
from bo_act.study.ownership import check_mine, give_back, keeping
from bo_act.study.settings import Configuration
from bo_act.study.signals import Signals, finishing_steps
from bo_act.study.task import Task
from bo_act.study.trials import DIVERGED, read_again
from bo_act.training.trainer import TrainingResult
from bo_act.urls import without_secrets


def run_trial(task: Task, study: optuna.Study, trial: Trial) -> TrialState:
    """Train one function and tell the study; return the trial's state.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C came. The step was finished and the state saved, and the
            trial has been given back.
        TrialTaken: another process has taken the trial over meanwhile.
    """
    if task.objective is not None:  # it does not ask whether to stop, so signals act at once
        return _evaluated(study, trial, partial(_own_objective, task, study, trial, task.objective))
    with finishing_steps() as signals:
        try:
            state = _evaluated(study, trial, partial(_trained, task, study, trial, signals))
        except TrialTaken:
            signals.stop_now()
            raise
    signals.stop_now()
    return state


def _evaluated(
    study: optuna.Study, trial: Trial, evaluate: Callable[[], TrainingResult]
) -> TrialState:
    """Tell the study what comes of an evaluation.

    Raises:
        TrialTaken: another process has taken the trial over meanwhile.
    """
    try:
        result = evaluate()
    except optuna.TrialPruned:
        with keeping(study, trial):
            study.tell(trial, state=TrialState.PRUNED)
        return TrialState.PRUNED
    except (BoActError, KeyboardInterrupt):
        # Nothing that the function is to blame for, nor the machine: whoever runs the study next
        # takes the trial over.
        give_back(study, trial)
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        # Out of memory, a lost device, a full disk: not the function's fault as far as we know.
        with keeping(study, trial):
            trial.set_user_attr("failure", _one_line(error))
            trial.set_user_attr("traceback", without_secrets(traceback.format_exc(limit=8)))
            study.tell(trial, state=TrialState.FAIL)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return TrialState.FAIL
    with keeping(study, trial):
        _note(trial, result)
        study.tell(trial, result.validation_accuracy)
    return TrialState.COMPLETE


def _note(trial: Trial, result: TrainingResult) -> None:
    """Write to a trial what there is to say of its result."""
    trial.set_user_attr("status", result.status)
    trial.set_user_attr("seconds", round(result.seconds, 3))
    if result.saving:
        trial.set_user_attr("seconds_saving", round(result.saving, 3))
    if result.collapsed:
        trial.set_user_attr("collapsed", True)
    if result.notes:
        trial.set_user_attr("notes", list(result.notes))
    if result.train_loss:
        losses = [float(f"{loss:.6g}") for loss in result.train_loss]
        trial.set_user_attr("train_loss", losses)
    if DIVERGED not in trial.constraints:
        trial.set_constraint(DIVERGED, 1.0 if result.status == DIVERGED else 0.0)


def _trained(task: Task, study: optuna.Study, trial: Trial, signals: Signals) -> TrainingResult:
    """Train by the recipe of the study file."""
    asked = Configuration.suggest(trial, task.space, task.spec)
    reported = read_again(study, trial).intermediate_values
    checkpoint = task.checkpoint(asked.trained, seed=task.spec.seed, settings=asked.settings)

    def report(epoch: int, accuracy: float) -> None:
        check_mine(study, trial)
        # A trial that was taken over has reported some epochs before.
        if epoch not in reported:
            trial.report(accuracy, epoch)
        if trial.should_prune():
            checkpoint.delete()
            raise optuna.TrialPruned

    _, result = task.train(
        asked.trained,
        seed=task.spec.seed,
        settings=asked.settings,
        report=report,
        checkpoint=checkpoint,
        stop=signals.came,
    )
    return result


def _own_objective(
    task: Task, study: optuna.Study, trial: Trial, objective: Objective
) -> TrainingResult:
    """Evaluate by the training function of a user's file."""
    asked = Configuration.suggest(trial, task.space, task.spec)
    context = task.context(seed=task.spec.seed, settings=asked.settings)
    started = time.perf_counter()
    value = objective(trial, asked.trained, context)
    finite = math.isfinite(value)
    curve = read_again(study, trial).intermediate_values
    return TrainingResult(
        status="completed" if finite else "diverged",
        curve=tuple(curve[step] for step in sorted(curve)),
        train_loss=(),
        # What the worst value of an objective is, nobody knows beforehand.
        validation_accuracy=value if finite else -math.inf,
        seconds=time.perf_counter() - started,
    )


def _one_line(error: BaseException) -> str:
    return " ".join(without_secrets(f"{type(error).__name__}: {error}").split())[:500]
