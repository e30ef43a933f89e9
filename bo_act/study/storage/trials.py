"""A study's own trials and their states: the only module that reads trials.

A study may hold trials of warm-start sources, to show them in Optuna's tools. They must not count,
so only this module asks a study or its storage for trials. It returns own ones; Optuna's code gets
a study through ``own_only``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from bo_act.dependencies.optuna_internals import filter_study, id_of, storage_of, study_id
from bo_act.errors import SearchError
from bo_act.training.outcomes import DIVERGED

VALUES, VARIANCE = "values", "variance"
"""User attributes of a trial: the values of its runs, and the variance of their mean."""

SOURCE = "source"
"""User attribute of a warm-start trial: the task it was measured on."""


# --- reading --------------------------------------------------------------------------------


def own(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Leave out the trials of warm-start sources."""
    return [trial for trial in trials if SOURCE not in trial.user_attrs]


def own_trials(study: Study, *states: TrialState) -> list[FrozenTrial]:
    """Return a study's own trials in the order of their numbers, not copied.

    Args:
        study: any. Under Hyperband, a sampler's study holds the trials of one bracket.
        states: of the trials; default: all.
    """
    return own(study.get_trials(deepcopy=False, states=states or None))


def source_trials(study: Study) -> list[FrozenTrial]:
    """Return a study's trials of warm-start sources."""
    return [t for t in study.get_trials(deepcopy=False) if SOURCE in t.user_attrs]


def own_trial(study: Study, number: int) -> FrozenTrial:
    """Return one of a study's own trials.

    Raises:
        SearchError: the study has no own trial of this number.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        others = f"its trials are 0 to {len(trials) - 1}" if trials else "it has none yet"
        raise SearchError(f"the study {study.study_name!r} has no trial {number}; {others}")
    trial = trials[number]
    if not own([trial]):
        raise SearchError(
            f"trial {number} comes from the source {trial.user_attrs[SOURCE]!r}, not from the "
            f"study {study.study_name!r}, whose own trials begin at "
            f"{next((t.number for t in own(trials)), len(trials))}"
        )
    return trial


def read_again(study: Study, trial: Trial) -> FrozenTrial:
    """Return a trial's current state; another process may have changed it."""
    frozen: FrozenTrial = storage_of(study).get_trial(id_of(trial))
    return frozen


def all_own_trials(study: Study) -> list[FrozenTrial]:
    """Return a study's own trials from its storage, under Hyperband those of all brackets, too."""
    return own(storage_of(study).get_all_trials(study_id(study), deepcopy=False))


def own_only(study: Study, trial: FrozenTrial | None = None) -> Study:
    """Return a view of a study with own trials only, for Optuna's samplers and importances.

    Args:
        study: to read.
        trial: being sampled. Under Hyperband, the view holds only the trials of its bracket.
    """
    whole = getattr(study, "_study", study)
    view: Study = _OwnTrialsStudy(whole)
    return view if trial is None or whole is study else filter_study(view, trial)


class _OwnTrialsStudy(Study):
    """A study without the trials of sources, for Optuna's code."""

    def __init__(self, study: Study) -> None:
        self.__dict__.update(study.__dict__)
        self._storage: Any = _OwnTrialsStorage(storage_of(study))
        self._study = study

    def stop(self) -> None:
        """Stop the wrapped study."""
        self._study.stop()


class _OwnTrialsStorage:
    """A storage without the trials of sources."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(self, *args: Any, **options: Any) -> list[FrozenTrial]:
        return own(self._storage.get_all_trials(*args, **options))


# --- states ---------------------------------------------------------------------------------


def is_diverged(trial: FrozenTrial) -> bool:
    """Tell whether a trial ended because its training diverged.

    To Optuna NaN is a failure without a value: such a trial is recognized by its ``status``.
    """
    if trial.state not in (TrialState.COMPLETE, TrialState.FAIL):
        return False
    if trial.user_attrs.get("status") == DIVERGED:
        return True
    return not all(map(math.isfinite, trial.values or ()))


def is_feasible(trial: FrozenTrial) -> bool:
    """Tell whether a trial satisfies its constraints, if any."""
    return all(value <= 0 for value in trial.constraints.values())


def has_values(study: Study) -> bool:
    """Tell whether an own trial has a value."""
    done = (TrialState.COMPLETE, TrialState.PRUNED)
    return bool(own_trials(study, *done))


def measured(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials that have not diverged."""
    return [t for t in trials if t.state == TrialState.COMPLETE and not is_diverged(t)]


def repetition(trial: FrozenTrial | Trial) -> int:
    """Return how often a trial's function had been evaluated before the sampler repeated it."""
    proposal = trial.user_attrs.get("proposal")
    return int(proposal.get("repetition", 0)) if isinstance(proposal, dict) else 0


def averaged(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials with a value, with repeated trials of one function averaged.

    The average has the number of the first trial. The value of a diverged trial counts as it is; a
    function with a trial without a value has no mean and is left out.
    """
    trials = list(trials)
    again = {_params(trial) for trial in trials if repetition(trial)}
    if not again:
        return measured(trials)
    groups: dict[Any, list[FrozenTrial]] = {}
    for trial in trials:
        if trial.state == TrialState.COMPLETE or is_diverged(trial):
            repeated = (key := _params(trial)) in again
            groups.setdefault(key if repeated else trial.number, []).append(trial)
    means = []
    for repeats in groups.values():
        values = [math.nan if trial.value is None else trial.value for trial in repeats]
        if (first := next(iter(measured(repeats)), None)) is None:
            continue
        if len(repeats) > 1:
            mean = math.fsum(values) / len(values)
            if not math.isfinite(mean):
                continue
            first = copy(first)
            first.value = mean
        means.append(first)
    return means


def _params(trial: FrozenTrial) -> tuple[Any, ...]:
    return tuple(sorted(trial.params.items()))


@dataclass(frozen=True)
class Counts:
    """Trials by state; ``complete`` includes the ``diverged`` ones."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    diverged: int = 0
    running: int = 0

    @property
    def finished(self) -> int:
        """Trials with a result."""
        return self.complete + self.pruned


def count(trials: Sequence[FrozenTrial]) -> Counts:
    """Count a study's own trials by state."""
    diverged = sum(map(is_diverged, trials))
    states = [trial.state for trial in trials if not is_diverged(trial)]
    return Counts(
        complete=states.count(TrialState.COMPLETE) + diverged,
        pruned=states.count(TrialState.PRUNED),
        failed=states.count(TrialState.FAIL),
        diverged=diverged,
        running=states.count(TrialState.RUNNING),
    )


def common_parameters(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """Return the parameters that all own trials with a result share, including slots."""
    common: dict[str, BaseDistribution] | None = None
    for trial in own(trials):
        ended = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or is_diverged(trial)
        if ended and trial.params:
            known = trial.distributions if common is None else common
            common = {n: d for n, d in known.items() if trial.distributions.get(n) == d}
    return common or {}
