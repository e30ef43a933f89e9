"""How trials and searches end: diverged ones, and spaces of which nothing is left."""

from __future__ import annotations

import inspect
import math
import threading
import warnings
from collections.abc import Callable, Sequence

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from bo_act.errors import SearchError, shortened
from bo_act.failures import USERS, is_machines, one_line
from bo_act.optuna_internals import (
    RUNS_TRIALS,
    TELLS_VALUES,
    id_of,
    is_stopping,
    storage_of,
    whole_study,
)
from bo_act.study.storage.trials import own_trials
from bo_act.training.outcomes import DIVERGED, Diverged

Constraints = Callable[[FrozenTrial], Sequence[float]]
"""What a trial's constraints are: at most 0 where they are satisfied."""


def mark_diverged(
    study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
) -> bool:
    """Note in the storage whether a trial diverged; arguments as of a sampler's ``after_trial``.

    The marks are those of a study file: a ``status``, and a constraint, so that Optuna's best trial
    is none that diverged.
    """
    storage, number = storage_of(study), id_of(trial)
    noted = trial.user_attrs.get("status") == DIVERGED
    diverged = noted or _has_diverged(state, values, len(study.directions))
    if diverged and not noted:
        storage.set_trial_user_attr(number, "status", DIVERGED)
    if state == TrialState.COMPLETE and DIVERGED not in trial.constraints:
        done = own_trials(whole_study(study), state)  # of all brackets of Hyperband
        # Optuna's GPSampler refuses a study in which some trials have a constraint and some not.
        if all(DIVERGED in other.constraints for other in done):
            storage.set_trial_system_attr(number, f"constraints:{DIVERGED}", float(diverged))
    return diverged


def note_constraints(
    constraints_func: Constraints, study: Study, trial: FrozenTrial, state: TrialState
) -> None:
    """Note values of constraints in the storage, as Optuna's own samplers do.

    Args:
        constraints_func: as Optuna's samplers take it.
        study: of the trial.
        trial: that ends, which has no value yet.
        state: that it ends in; constraints are those of complete and of pruned ones.

    Raises:
        SearchError: the function fails, or returns no numbers.
    """
    if state not in (TrialState.COMPLETE, TrialState.PRUNED):
        return
    what = "expected constraints_func(trial) to return numbers, at most 0 where all is well"
    try:
        given = constraints_func(trial)
    except USERS as error:
        if is_machines(error):
            raise
        said = f"constraints_func fails on trial {trial.number}: {one_line(error)}"
        raise SearchError(said) from error
    try:
        found = [float(value) for value in given]
    except (TypeError, ValueError) as error:
        raise SearchError(f"{what}, got {shortened(repr(given))}") from error
    if any(map(math.isnan, found)):
        raise SearchError(f"{what}, got NaN: {shortened(repr(given))}")
    storage_of(study).set_trial_system_attr(id_of(trial), "constraints", found)


def _has_diverged(state: TrialState, values: Sequence[float] | None, objectives: int) -> bool:
    if state == TrialState.FAIL:
        return _is_nan_or_diverged(objectives)
    done = values if state == TrialState.COMPLETE and values else ()
    return any(not math.isfinite(value) for value in done)


def _is_nan_or_diverged(objectives: int) -> bool:
    """Tell whether the objective of the trial that ends returned NaN or raised ``Diverged``.

    Optuna makes both a failure and hands a sampler neither the value nor the exception; they are
    in the frames that call it.
    """
    frame = inspect.currentframe()
    while frame is not None:
        place = frame.f_globals.get("__name__"), frame.f_code.co_name
        if place == RUNS_TRIALS and isinstance(frame.f_locals.get("func_err"), Diverged):
            return True
        if place == TELLS_VALUES and _is_nan(frame.f_locals.get("value_or_values"), objectives):
            return True
        frame = frame.f_back
    return False


def _is_nan(value: object, objectives: int) -> bool:
    some = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    try:
        return len(some) == objectives and any(map(math.isnan, some))
    except (TypeError, ValueError, RuntimeError):  # no number
        return False


_ONE_SAYS_SO = threading.Lock()  # of the threads of one study


def stop(study: Study, space: str) -> None:
    """Have ``study.optimize`` return, and say why.

    Args:
        study: that is being optimized.
        space: name of what was searched.
    """
    study = whole_study(study)
    with _ONE_SAYS_SO:
        first = not is_stopping(study)
        study.stop()
    if first:
        warnings.warn(
            f"the study {study.study_name!r} ends: every function of the space {space!r} in the "
            "embedding was tried",
            stacklevel=3,
        )
