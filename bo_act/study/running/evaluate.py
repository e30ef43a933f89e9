"""Training one trial and telling the study what came of it."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import optuna
import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import Trial, TrialState

from bo_act.activations.learnt import LEARNT, learnt_scales
from bo_act.errors import BoActError, NetworkError, SpecError
from bo_act.failures import Failure
from bo_act.metrics import Metric
from bo_act.specs.base import derived_seed
from bo_act.study.running.signals import Signals, finishing_steps, noting
from bo_act.study.storage.owner import TrialTaken
from bo_act.study.storage.ownership import check_mine, give_back, keeping
from bo_act.study.storage.trials import VALUES, VARIANCE, has_values, read_again, repetition
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.failures import failure_of
from bo_act.tasks.objective import Objective
from bo_act.tasks.task import Task
from bo_act.training.outcomes import DIVERGED
from bo_act.training.trainer import TrainingResult
from bo_act.urls import without_secrets

_FRAMES = 8  # of a traceback that are kept, the innermost ones

Evaluate = Callable[[Configuration], TrainingResult]


def run_trial(task: Task, study: optuna.Study, trial: Trial) -> TrialState:
    """Train one function and tell the study; return the trial's state.

    Code of the user's may raise anything. What it raises before any trial of the study has a
    value is the file's fault, whatever the function: the study stops, and the trial waits for the
    file to be mended. Later it is the function's, and the trial fails.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C came. The step was finished and the state saved, and the
            trial has been given back.
        TrialTaken: another process has taken the trial over meanwhile.
        SpecError, NetworkError: the training function or the model file is to be mended.
    """
    if task.objective is not None:  # it does not ask whether to stop, so signals act at once
        with noting() as signals:
            evaluate = partial(_own_objective, task, study, trial, task.objective)
            return _evaluated(task, study, trial, signals, evaluate)
    with finishing_steps() as signals:
        evaluate = partial(_trained, task, study, trial, signals)
        try:
            state = _evaluated(task, study, trial, signals, evaluate)
        except TrialTaken:
            signals.stop_now()
            raise
    signals.stop_now()
    return state


def _evaluated(
    task: Task, study: optuna.Study, trial: Trial, signals: Signals, evaluate: Evaluate
) -> TrialState:
    """Tell the study what comes of an evaluation.

    Raises:
        TrialTaken: another process has taken the trial over meanwhile.
    """
    users = False  # whether it is code of the user's that is at work
    if trial.user_attrs.get("failure"):
        trial.set_user_attr("failure", None)  # it was given back, and the file is mended
    try:
        asked = Configuration.suggest(trial, task.space, task.spec)
        users = True
        result = evaluate(asked)
        if task.objective is not None:  # which may have caught it, and trained half
            signals.stop_now()
    except optuna.TrialPruned:
        with keeping(study, trial):
            study.tell(trial, state=TrialState.PRUNED)
        return TrialState.PRUNED
    except TrialTaken:
        raise
    except BaseException as error:
        if signals.explain(error) or not _is_of_files(task, error):
            give_back(study, trial)
            if isinstance(error, KeyboardInterrupt):
                raise
            signals.stop_now()
        if isinstance(error, UpdateFinishedTrialError | StorageInternalError):
            check_mine(study, trial)
            raise  # the storage is gone
        return _failed(task, study, trial, error, users=users)
    with keeping(study, trial):
        _note_result(trial, result)
        study.tell(trial, result.value)
    return TrialState.COMPLETE


def _note_result(trial: Trial, result: TrainingResult) -> None:
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


def _is_of_files(task: Task, error: BaseException) -> bool:
    """Tell whether it may be that a file of the study raised this, and no person did."""
    if not isinstance(error, KeyboardInterrupt) or task.objective is not None:
        return True
    return Path(Failure.of(error).file).absolute() == task.builder.path


# --- what is told of failures ---------------------------------------------------------------


def _failed(
    task: Task, study: optuna.Study, trial: Trial, error: BaseException, *, users: bool
) -> TrialState:
    """Let a trial fail, or stop the study where its file is at fault.

    Args:
        task: of the study.
        study: of the trial.
        trial: gets the failure as user attribute.
        error: what ended it.
        users: whether code of the user's ran.
    """
    failure = failure_of(error, objective=users and task.objective is not None)
    if failure is None or (isinstance(error, BoActError) and not users):
        # Nothing that the function is to blame for, nor the machine: whoever runs the study next
        # takes the trial over.
        give_back(study, trial)
        raise error
    if users and failure.blame == "function" and not has_values(study):
        failure = replace(failure, blame="file")
        _give_back_failed(study, trial, failure)
        raise _to_be_mended(task, error, failure) from error
    with keeping(study, trial):
        _note_failure(trial, failure, error)
        study.tell(trial, state=TrialState.FAIL)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return TrialState.FAIL


def _to_be_mended(task: Task, error: BaseException, failure: Failure) -> BoActError:
    advice = "fix it, and the same command resumes"
    if task.objective is not None:
        said = str(error) if isinstance(error, SpecError) else ""
        what = said or f"{task.objective.path}: the objective failed: {failure}"
        return SpecError(f"{what}; {advice}")
    if isinstance(error, NetworkError):
        return error
    return NetworkError(f"{task.builder.path}: training failed: {failure}; {advice}")


def _note_failure(trial: Trial, failure: Failure, error: BaseException) -> None:
    trial.set_user_attr("failure", failure.as_attribute())
    frames = traceback.format_exception(error, limit=-_FRAMES)
    lines = without_secrets("".join(frames)).replace("\0", "?").encode("utf-8", "replace").decode()
    trial.set_user_attr("traceback", lines[-10_000:])


def _give_back_failed(study: optuna.Study, trial: Trial, failure: Failure) -> None:
    """Let whoever runs the study next take a trial over.

    What a file reported before it failed cannot be taken back, and once it is mended it may report
    something else. Such a trial ends, and counts for nothing; a person's is asked for again.
    """
    frozen = read_again(study, trial)
    with keeping(study, trial):
        trial.set_user_attr("failure", failure.as_attribute())
        if frozen.intermediate_values:
            study.tell(trial, state=TrialState.FAIL)
    if not frozen.intermediate_values:
        give_back(study, trial)
    elif asked := frozen.system_attrs.get("fixed_params"):
        study.enqueue_trial(asked)


# --- evaluating -----------------------------------------------------------------------------


def _trained(
    task: Task, study: optuna.Study, trial: Trial, signals: Signals, asked: Configuration
) -> TrainingResult:
    """Train by the recipe of the study file."""
    reported = read_again(study, trial).intermediate_values
    seed = _seed(task, trial)
    checkpoint = task.checkpoint(asked.trained, seed=seed, settings=asked.settings)

    def report(epoch: int, value: float) -> None:
        check_mine(study, trial)
        # A trial that was taken over has reported some epochs before.
        if epoch not in reported:
            trial.report(value, epoch)
        if trial.should_prune():
            checkpoint.delete()
            raise optuna.TrialPruned

    network, result = task.train(
        asked.trained,
        seed=seed,
        settings=asked.settings,
        report=report,
        checkpoint=checkpoint,
        stop=signals.came,
    )
    if task.spec.activation.is_learnable and result.status == "completed":
        with keeping(study, trial):
            trial.set_user_attr(LEARNT, learnt_scales(network))
    return result


def _seed(task: Task, trial: Trial) -> int:
    """Return a trial's training seed: the study's, and a fresh one for each repetition."""
    return derived_seed(task.spec.seed, repetition(trial))


def _own_objective(
    task: Task, study: optuna.Study, trial: Trial, objective: Objective, asked: Configuration
) -> TrainingResult:
    """Evaluate by the training function of a user's file."""
    context = task.context(seed=_seed(task, trial), settings=asked.settings)
    started = time.perf_counter()
    found = objective(trial, asked.trained, context, task.spec.activation.options)
    value, finite = found.value, math.isfinite(found.value)
    if found.variance is not None:
        trial.set_user_attr(VALUES, list(found.values))
        trial.set_user_attr(VARIANCE, found.variance)
    if found.test is not None and math.isfinite(found.test):
        trial.set_user_attr("test", found.test)
    curve = read_again(study, trial).intermediate_values
    return TrainingResult(
        status="completed" if finite else "diverged",
        curve=tuple(curve[step] for step in sorted(curve)),
        train_loss=(),
        value=value if finite else _worst(task.spec.measured),
        seconds=time.perf_counter() - started,
    )


def _worst(metric: Metric) -> float:
    """Return what is noted of a training that diverged; infinity where the worst is not known."""
    return -metric.sign * math.inf if metric.worst is None else metric.worst
