"""The loop of a study's worker: take a trial, train it, record its result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from datetime import datetime
from enum import Enum

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from bo_act.dependencies.optuna_internals import id_of, storage_of, study_id
from bo_act.errors import SearchError
from bo_act.events import Events
from bo_act.features.table import FeatureTable
from bo_act.specs import StudySpec
from bo_act.study.results.failures import failure_of_trial
from bo_act.study.results.stopping import improvement_left
from bo_act.study.results.summary import best_value
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.checkpoint_cleanup import clean_up_checkpoints
from bo_act.study.running.evaluate import run_trial
from bo_act.study.running.waiting import awaited
from bo_act.study.sampling.candidates import study_costs
from bo_act.study.sampling.methods import Method
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.sampling.warm_start import refuse_itself
from bo_act.study.storage.backends.locks import study_lock
from bo_act.study.storage.heartbeat import Heartbeat, forget_ended
from bo_act.study.storage.opening import open_study
from bo_act.study.storage.owner import DEATHS, OWNER, Owner, TrialTaken
from bo_act.study.storage.recorded_settings import check_settings
from bo_act.study.storage.study_view import StudyView
from bo_act.study.storage.trials import count, measured, own_trials, read_again
from bo_act.tasks.checks import check_before_search
from bo_act.tasks.configuration import distributions, places
from bo_act.tasks.task import Task
from bo_act.training.trainer import cpu_threads, pick_device

# After so many failed trials in a row, the cause must lie outside the functions. Failures of user
# code count by function, since a failed function is tried again.
_FAILURES_IN_A_ROW = 5

_SAME_VALUES = 5  # first functions; if all have the same value, bo-act warns

# After so many process deaths during one trial, its function is to blame.
_MOST_DEATHS = 10

_LOOK = 1.0  # seconds between polls of the study while there is no trial to run


class _No(Enum):
    """Why there is no trial to run, for now or for good."""

    YET = "other workers run the last trials"
    MORE = "the study is done"


def compute_candidate_features(
    task: Task, events: Events, *, workers: int = 1
) -> FeatureTable | None:
    """Return the features of all functions; None if the space is not enumerated."""
    if task.is_unenumerated:
        return None
    return task.features(events.features, workers=workers)


def make_sampler(
    task: Task, features: FeatureTable | None, study: optuna.Study
) -> ActivationSampler:
    """Return the sampler of a study file."""
    spec = task.spec
    costs = None
    if spec.acquisition.needs_costs and not task.is_unenumerated:
        costs = study_costs(study, task.space, pick_device(spec.training.device))
    method = Method.of(task)
    cold = spec.warm_start.baselines or not spec.warm_start.sources
    return ActivationSampler(
        task.space,
        features=features,
        baselines=tuple(map(str, task.space.baselines)) if cold else (),
        initial=spec.initial if cold else 0,
        candidates=spec.candidates,
        embedding=method.embedding,
        surrogate=method.surrogate,
        acquisition=method.acquisition,
        strategy=method.strategy,
        costs=costs,
        warm_start=spec.warm_start.sources,
        first=spec.warm_start.first,
        activations=places(spec),
        parameters=distributions(spec),
        defaults=spec.defaults,
        seed=spec.seed,
        max_retries=spec.max_retries,
    )


def work(
    spec: StudySpec,
    *,
    events: Events | None = None,
    callbacks: Callbacks | None = None,
    patience: float = 300.0,
    checked: bool = False,
) -> int:
    """Work on a study, beside other workers, until it is done; return the trials run here.

    Args:
        spec: the study; all workers must reach its storage.
        events: the progress listener.
        callbacks: to run after each trial of this worker.
        patience: seconds to wait for a database server to come up.
        checked: skip the checks before a search, since the parent has made them.

    Raises:
        BoActError: something in the study file, the data or the storage is wrong.
    """
    events = events or Events()
    task = Task.load(spec)
    random = optuna.samplers.RandomSampler()
    study = open_study(spec, random, content=task.content, patience=patience)
    events.opened(study)
    if finished(study) >= spec.trials:
        return 0
    refuse_itself(study, spec.warm_start.sources)
    if not checked:
        check_before_search(task)
    study.sampler = sampler = make_sampler(task, compute_candidate_features(task, events), study)
    with cpu_threads(spec.training.threads):
        return search(task, study, sampler, events, callbacks or Callbacks([]))


def search(
    task: Task,
    study: optuna.Study,
    sampler: ActivationSampler,
    events: Events,
    callbacks: Callbacks,
) -> int:
    """Run trials until the study has enough of them; return how many were run here."""
    total, ran = task.spec.trials, 0
    failed: set[str] = set()  # in a row
    done = finished(study)
    events.search(done, total, None, best_value(study))
    while done < total:
        if _is_enough(task.spec, study, sampler):
            break
        trial = _next_trial(task.spec, study, sampler, task.content)
        if trial is _No.MORE:
            break
        if isinstance(trial, _No):
            events.waiting(awaited(study))
            time.sleep(_LOOK)
            done = finished(study)
            continue
        events.waiting(())
        try:
            with Heartbeat(study, id_of(trial), grace=task.spec.grace):
                state = run_trial(task, study, trial)
        except TrialTaken as taken:
            warnings.warn(str(taken), stacklevel=2)
            done = finished(study)
            continue
        ran += 1
        frozen = read_again(study, trial)
        callbacks(study, frozen)
        done = finished(study)
        events.search(done, total, frozen, best_value(study))
        if state != TrialState.FAIL:
            failed.clear()
            _warn_of_one_value(task, study)
            continue
        clean_up_checkpoints(task, study)
        failure = failure_of_trial(frozen)
        functions = failure is not None and failure.blame == "function"
        failed.add(str(frozen.user_attrs.get("activation") if functions else trial.number))
        if len(failed) >= _FAILURES_IN_A_ROW:
            raise SearchError(
                f"{len(failed)} {'functions' if functions else 'trials'} failed in a row, so the "
                f"cause is not the function; the last: {failure}"
            )
    clean_up_checkpoints(task, study)
    forget_ended(study, own_trials(study))
    return ran


def finished(study: optuna.Study) -> int:
    """Count the trials with a result."""
    return count(own_trials(study)).finished


def _warn_of_one_value(task: Task, study: optuna.Study) -> None:
    """Warn once if the first functions all have the same value.

    Networks are checked before the search; but a user's training function may ignore the
    activation in many ways.
    """
    if task.objective is None:
        return
    done = measured(own_trials(study))
    values = {str(trial.user_attrs.get("activation")): trial.value for trial in done}
    enough = min(_SAME_VALUES, task.spec.trials)
    if len(values) == enough > 1 and len(set(values.values())) == 1:
        warnings.warn(
            f"the first {enough} functions all have the value "
            f"{task.spec.measured.text(next(iter(values.values())))}: "
            f"does {task.objective.path.name} use its activation?",
            stacklevel=3,
        )


def _is_enough(spec: StudySpec, study: optuna.Study, sampler: ActivationSampler) -> bool:
    if spec.stop.improvement is None or finished(study) < spec.stop.least:
        return False
    return improvement_left(study, sampler) < spec.stop.improvement


def _next_trial(
    spec: StudySpec,
    study: optuna.Study,
    sampler: ActivationSampler,
    content: Mapping[str, str] | None = None,
) -> Trial | _No:
    """Return the trial to run now: an abandoned one, an enqueued one, or a new one."""
    me = Owner.me(spec.grace)
    with study_lock(study):
        check_settings(study, spec, content or {})
        view = StudyView.of(study)
        for running in view.running:
            # A trial of mine that I do not run was created, but the server's answer was lost.
            mine = Owner.read(running.system_attrs.get(OWNER)) == me
            if (mine or running.number in view.abandoned) and _take_over(study, running, me):
                return Trial(study, id_of(running))
        if any(other.state == TrialState.WAITING for other in view.trials):
            trial = study.ask()
            storage_of(study).set_trial_system_attr(id_of(trial), OWNER, me.as_attribute())
            return trial
        live = len(view.running) - len(view.abandoned)
        if count(view.trials).finished + live >= spec.trials:
            return _No.YET if live else _No.MORE
        if sampler.is_exhausted(study, len(view.trials)):
            # The whole space is evaluated, unless a running trial fails.
            return _No.YET if live else _No.MORE
        # Created with its owner in one transaction, so that it is never without one.
        template = create_trial(state=TrialState.RUNNING, system_attrs={OWNER: me.as_attribute()})
        template.datetime_start = datetime.now()
        return Trial(study, storage_of(study).create_new_trial(study_id(study), template))


def _take_over(study: optuna.Study, trial: FrozenTrial, me: Owner) -> bool:
    """Take over a dead process's trial; after too many deaths it fails instead."""
    before = Owner.read(trial.system_attrs.get(OWNER))
    deaths = int(trial.system_attrs.get(DEATHS, 0)) + (before is not None and before != me)
    storage, number = storage_of(study), id_of(trial)
    if deaths > _MOST_DEATHS:
        storage.set_trial_user_attr(number, "failure", f"{deaths} processes died over it")
        storage.set_trial_state_values(number, TrialState.FAIL)
        return False
    if deaths:
        storage.set_trial_system_attr(number, DEATHS, deaths)
    storage.set_trial_system_attr(number, OWNER, me.as_attribute())
    return True
