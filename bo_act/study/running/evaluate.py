"""Training one trial and recording its result in the study."""

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
from bo_act.user_code.failures import Failure

_FRAMES = 8  # innermost frames of a traceback to record

Evaluate = Callable[[Configuration], TrainingResult]


def run_trial(task: Task, study: optuna.Study, trial: Trial) -> TrialState:
    """Train one function, record its result in the study, and return the trial's state.

    User code may raise anything. If it does before any trial of the study has a value, the file is
    to blame: the study stops, and the trial waits for a corrected file. Later, the function is to
    blame, and the trial fails.

    Raises:
        TrainingStopped: SIGTERM or Ctrl-C came; the step was finished, the state saved, and the
            trial given back.
        TrialTaken: another process has taken the trial over.
        SpecError, NetworkError: the training function or the model file has an error.
    """
    if task.objective is not None:  # it never polls for signals, so they act at once
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
    """Evaluate a trial and record its result in the study.

    Raises:
        TrialTaken: another process has taken the trial over.
    """
    users = False  # whether user code is running
    if trial.user_attrs.get("failure"):
        trial.set_user_attr("failure", None)  # it was given back, and the file is corrected
    try:
        configuration = Configuration.suggest(trial, task.space, task.spec)
        users = True
        result = evaluate(configuration)
        if task.objective is not None:  # it may have caught the signal and stopped halfway
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
    """Write the details of a result to its trial."""
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
    """Tell whether a file of the study, rather than the user, may have raised an error."""
    if not isinstance(error, KeyboardInterrupt) or task.objective is not None:
        return True
    return Path(Failure.of(error).file).absolute() == task.builder.path


# --- recording failures ---------------------------------------------------------------------


def _failed(
    task: Task, study: optuna.Study, trial: Trial, error: BaseException, *, users: bool
) -> TrialState:
    """Fail a trial, or stop the study if its file is to blame.

    Args:
        task: of the study.
        study: of the trial.
        trial: gets the failure as user attribute.
        error: that ended it.
        users: whether user code was running.
    """
    failure = failure_of(error, objective=users and task.objective is not None)
    if failure is None or (isinstance(error, BoActError) and not users):
        # Neither the function nor the machine is to blame: the next run takes the trial over.
        give_back(study, trial)
        raise error
    if users and failure.blame == "function" and not has_values(study):
        failure = replace(failure, blame="file")
        _give_back_failed(study, trial, failure)
        raise _file_error(task, error, failure) from error
    with keeping(study, trial):
        _note_failure(trial, failure, error)
        study.tell(trial, state=TrialState.FAIL)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return TrialState.FAIL


def _file_error(task: Task, error: BaseException, failure: Failure) -> BoActError:
    advice = "fix it, and the same command resumes"
    if task.objective is not None:
        message = str(error) if isinstance(error, SpecError) else ""
        message = message or f"{task.objective.path}: the objective failed: {failure}"
        return SpecError(f"{message}; {advice}")
    if isinstance(error, NetworkError):
        return error
    return NetworkError(f"{task.builder.path}: training failed: {failure}; {advice}")


def _note_failure(trial: Trial, failure: Failure, error: BaseException) -> None:
    trial.set_user_attr("failure", failure.as_attribute())
    frames = traceback.format_exception(error, limit=-_FRAMES)
    lines = without_secrets("".join(frames)).replace("\0", "?").encode("utf-8", "replace").decode()
    trial.set_user_attr("traceback", lines[-10_000:])


def _give_back_failed(study: optuna.Study, trial: Trial, failure: Failure) -> None:
    """Leave a trial to the next run of the study.

    Values reported before the failure cannot be withdrawn, and the corrected file may report
    others. A trial with such values ends without counting; if you enqueued it, it is enqueued
    again.
    """
    frozen = read_again(study, trial)
    with keeping(study, trial):
        trial.set_user_attr("failure", failure.as_attribute())
        if frozen.intermediate_values:
            study.tell(trial, state=TrialState.FAIL)
    if not frozen.intermediate_values:
        give_back(study, trial)
    elif enqueued := frozen.system_attrs.get("fixed_params"):
        study.enqueue_trial(enqueued)


# --- evaluating -----------------------------------------------------------------------------


def _trained(
    task: Task, study: optuna.Study, trial: Trial, signals: Signals, configuration: Configuration
) -> TrainingResult:
    """Train by the recipe of the study file."""
    reported = read_again(study, trial).intermediate_values
    seed = _seed(task, trial)
    functions, settings = configuration.trained, configuration.settings
    checkpoint = task.checkpoint(functions, seed=seed, settings=settings)

    def report(epoch: int, value: float) -> None:
        check_mine(study, trial)
        # A trial taken over has reported its first epochs already.
        if epoch not in reported:
            trial.report(value, epoch)
        if trial.should_prune():
            checkpoint.delete()
            raise optuna.TrialPruned

    network, result = task.train(
        functions,
        seed=seed,
        settings=settings,
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
    task: Task,
    study: optuna.Study,
    trial: Trial,
    objective: Objective,
    configuration: Configuration,
) -> TrainingResult:
    """Evaluate by the training function in the user's file."""
    context = task.context(seed=_seed(task, trial), settings=configuration.settings)
    started = time.perf_counter()
    answer = objective(trial, configuration.trained, context, task.spec.activation.options)
    value, finite = answer.value, math.isfinite(answer.value)
    if answer.variance is not None:
        trial.set_user_attr(VALUES, list(answer.values))
        trial.set_user_attr(VARIANCE, answer.variance)
    if answer.test is not None and math.isfinite(answer.test):
        trial.set_user_attr("test", answer.test)
    curve = read_again(study, trial).intermediate_values
    return TrainingResult(
        status="completed" if finite else "diverged",
        curve=tuple(curve[step] for step in sorted(curve)),
        train_loss=(),
        value=value if finite else _worst(task.spec.measured),
        seconds=time.perf_counter() - started,
    )


def _worst(metric: Metric) -> float:
    """Return the value of a training that diverged: the metric's worst, or infinity."""
    return -metric.sign * math.inf if metric.worst is None else metric.worst
