"""Ends of trials and searches: divergence, constraints, and exhausted spaces."""

from __future__ import annotations

import inspect
import math
import threading
import warnings
from collections.abc import Callable, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bo_act.dependencies.optuna_internals import (
    RUNS_TRIALS,
    TELLS_VALUES,
    id_of,
    is_stopping,
    storage_of,
    whole_study,
)
from bo_act.errors import SearchError, shortened
from bo_act.study.storage.trials import own_trials
from bo_act.training.outcomes import DIVERGED, Diverged
from bo_act.user_code.failures import USERS, is_machines, one_line

Constraints = Callable[[FrozenTrial], Sequence[float]]
"""Returns a trial's constraint values, at most 0 if satisfied."""


def mark_diverged(
    study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
) -> bool:
    """Record whether a trial diverged; arguments as for a sampler's ``after_trial``.

    As in the study of a file, it sets a ``status`` and a constraint, so that Optuna's best trial
    is never a diverged one.
    """
    storage, number = storage_of(study), id_of(trial)
    noted = trial.user_attrs.get("status") == DIVERGED
    diverged = noted or _has_diverged(state, values, len(study.directions))
    if diverged and not noted:
        storage.set_trial_user_attr(number, "status", DIVERGED)
    if state == TrialState.COMPLETE and DIVERGED not in trial.constraints:
        done = own_trials(whole_study(study), state)  # of all brackets of Hyperband
        # Optuna's GPSampler refuses a study in which only some trials have a constraint.
        if all(DIVERGED in other.constraints for other in done):
            storage.set_trial_system_attr(number, f"constraints:{DIVERGED}", float(diverged))
    return diverged


def note_constraints(
    constraints_func: Constraints, study: Study, trial: FrozenTrial, state: TrialState
) -> None:
    """Record constraint values, as Optuna's own samplers do.

    Args:
        constraints_func: as for Optuna's samplers.
        study: of the trial.
        trial: that ends, without a value yet.
        state: of its end; only complete and pruned trials have constraints.

    Raises:
        SearchError: the function fails, or returns no numbers.
    """
    if state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return
    expected = "expected constraints_func(trial) to return numbers, at most 0 if satisfied"
    try:
        given = constraints_func(trial)
    except USERS as error:
        if is_machines(error):
            raise
        message = f"constraints_func fails on trial {trial.number}: {one_line(error)}"
        raise SearchError(message) from error
    try:
        values = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise SearchError(f"{expected}, got {shortened(repr(given))}") from error
    if any(map(math.isnan, values)):
        raise SearchError(f"{expected}, got NaN: {shortened(repr(given))}")
    storage_of(study).set_trial_system_attr(id_of(trial), "constraints", values)


def _has_diverged(state: TrialState, values: Sequence[float] | None, objectives: int) -> bool:
    if state == TrialState.FAIL:
        return _is_nan_or_diverged(objectives)
    done = values if state == TrialState.COMPLETE and values else ()
    return any(not math.isfinite(value) for value in done)


def _is_nan_or_diverged(objectives: int) -> bool:
    """Tell whether the ending trial's objective returned NaN or raised ``Diverged``.

    Optuna turns both into a failure, and passes neither value nor exception to a sampler; they
    are in the calling frames.
    """
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_globals.get("__name__"), frame.f_code.co_name
        if caller == RUNS_TRIALS and isinstance(frame.f_locals.get("func_err"), Diverged):
            return True
        if caller == TELLS_VALUES and _is_nan(frame.f_locals.get("value_or_values"), objectives):
            return True
        frame = frame.f_back
    return False


def _is_nan(value: object, objectives: int) -> bool:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    try:
        return len(values) == objectives and any(map(math.isnan, values))
    except (TypeError, ValueError, RuntimeError):  # not a number
        return False


_FIRST_WARNS = threading.Lock()  # among the threads of a study


def stop(study: Study, space: str) -> None:
    """Stop ``study.optimize``, and warn why.

    Args:
        study: being optimized.
        space: its name.
    """
    study = whole_study(study)
    with _FIRST_WARNS:
        first = not is_stopping(study)
        study.stop()
    if first:
        warnings.warn(
            f"the study {study.study_name!r} ends: every function of the space {space!r} in the "
            "embedding was tried",
            stacklevel=3,
        )
