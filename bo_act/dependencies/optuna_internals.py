"""Private parts of Optuna that bo-act relies on, in one place, so that an upgrade breaks here.

``tests/dependencies/test_optuna_internals.py`` names each.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from optuna._transform import _SearchSpaceTransform as SearchSpaceTransform
from optuna.distributions import BaseDistribution
from optuna.pruners import _filter_study as filter_study
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages._rdb import models
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

__all__ = [
    "RDB_LOGGER",
    "RUNS_TRIALS",
    "TELLS_VALUES",
    "BaseHeartbeat",
    "SearchSpaceTransform",
    "backend_of",
    "contains",
    "filter_study",
    "id_of",
    "is_optimizing",
    "is_stopping",
    "models",
    "storage_of",
    "study_id",
    "whole_study",
]

RUNS_TRIALS = ("optuna.study._optimize", "_run_trial")
"""Module and function whose frame has the exception of an objective, as ``func_err``."""

TELLS_VALUES = ("optuna.study._tell", "_tell_with_warning")
"""Module and function whose frame has what an objective returned, as ``value_or_values``."""

RDB_LOGGER = "optuna.storages._rdb.storage"
"""Logger of databases."""


storage_of: Callable[[Study], Any] = attrgetter("_storage")
"""Return a study's storage."""

study_id: Callable[[Study], int] = attrgetter("_study_id")
"""Return a study's number in its storage."""

id_of: Callable[[Trial | FrozenTrial], int] = attrgetter("_trial_id")
"""Return a trial's number in its storage, among those of all studies."""


def backend_of(study: Study) -> Any:
    """Return the storage behind Optuna's cache; None without a cache."""
    return getattr(study._storage, "_backend", None)


def whole_study(study: Study) -> Study:
    """Return the study behind one of Hyperband's brackets."""
    return getattr(study, "_study", study)


def is_optimizing(study: Study) -> bool:
    """Tell whether ``study.optimize`` is running, which can be stopped."""
    return bool(whole_study(study)._thread_local.in_optimize_loop)


def is_stopping(study: Study) -> bool:
    """Tell whether ``study.stop`` was called already."""
    return bool(study._stop_flag)


def contains(distribution: BaseDistribution, inner: float) -> bool:
    """Tell whether a value in Optuna's internal representation is in a distribution."""
    return bool(distribution._contains(inner))
