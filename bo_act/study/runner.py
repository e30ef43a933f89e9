"""Running a study: ask for a function, train it, tell the result, until enough are done.

A trial whose process died is taken over under its own number, with the function it was given,
before anything new is asked for. So a study that was killed proposes what it would have proposed
undisturbed, and no function is lost.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import optuna
from optuna.trial import Trial, TrialState, create_trial

from bo_act.errors import SearchError
from bo_act.features.table import FeatureTable
from bo_act.specs import StudySpec
from bo_act.study.callbacks import Callback, Callbacks
from bo_act.study.claims import OWNER, Owner
from bo_act.study.confirm import confirm
from bo_act.study.evaluate import run_trial
from bo_act.study.events import Events
from bo_act.study.methods import make_strategy
from bo_act.study.results import (
    StudyResult,
    best_configurations,
    best_value,
    count,
    summarize,
)
from bo_act.study.sampler import ActivationSampler
from bo_act.study.settings import distributions, places
from bo_act.study.sources import add_source_trials, read_sources
from bo_act.study.stop import improvement_left
from bo_act.study.storage import open_study
from bo_act.study.task import Task
from bo_act.study.times import study_costs
from bo_act.study.trials import read_trials
from bo_act.training.trainer import cpu_threads, pick_device

# Failed trials in a row after which the cause is taken to lie outside the functions.
_FAILURES_IN_A_ROW = 5


def run_study(
    spec: StudySpec, *, events: Events | None = None, callbacks: Sequence[Callback] = ()
) -> StudyResult:
    """Run a study to its end, or go on with it.

    Args:
        spec: the study; ``spec.trials`` counts all finished trials, those of earlier calls too.
        events: called as the study proceeds.
        callbacks: ``callback(study, trial)`` for each trial that has ended, besides those that the
            study file names. One that raises is reported once; the trial is kept.

    Returns:
        The best functions, with fresh-seed results on the test set.

    Raises:
        BoActError: something in the study file, the data or the storage is not as it should be.
    """
    events = events or Events()
    told = Callbacks.of(spec, callbacks)
    task = Task.load(spec)
    study = open_study(spec, optuna.samplers.RandomSampler(), content=task.content)
    events.opened(study)
    if _finished(study) < spec.trials:
        study.sampler = sampler = make_sampler(task, look_at_functions(task, events), study)
        if most := spec.warm_start.as_trials:
            sources = read_sources(task.space, spec.warm_start.sources)
            add_source_trials(study, task.space, sources, most=most, activations=places(spec))
        _keep_spec(spec)
        with cpu_threads(spec.training.threads):
            _search(task, study, sampler, events, told)
    found = best_configurations(study, spec)
    confirmed = (
        confirm(task, study, found, events.confirmation)
        if spec.confirm.seeds and not spec.objective
        else []
    )
    return summarize(study, spec, confirmed)


def look_at_functions(task: Task, events: Events) -> FeatureTable | None:
    """Return the features of all functions; None where they are computed as they are met."""
    return None if task.from_tree_to_tree else task.features(events.features)


def make_sampler(
    task: Task, features: FeatureTable | None, study: optuna.Study
) -> ActivationSampler:
    """Return the sampler that a study file describes, for its study."""
    spec = task.spec
    costs = None
    if spec.acquisition.needs_costs and not task.from_tree_to_tree:
        costs = study_costs(study, task.space, pick_device(spec.training.device))
    cold = spec.warm_start.baselines or not spec.warm_start.sources
    return ActivationSampler(
        task.space,
        features=features,
        baselines=tuple(map(str, task.space.baselines)) if cold else (),
        initial=spec.initial if cold else 0,
        candidates=spec.candidates,
        embedding=spec.embedding,
        surrogate=spec.surrogate,
        acquisition=spec.acquisition,
        costs=costs,
        strategy=make_strategy(spec.strategy, task.space),
        warm_start=spec.warm_start.sources,
        first=spec.warm_start.first,
        activations=places(spec),
        parameters=distributions(spec),
        defaults=spec.defaults,
        seed=spec.seed,
        max_retries=spec.max_retries,
    )


def _search(
    task: Task,
    study: optuna.Study,
    sampler: ActivationSampler,
    events: Events,
    told: Callbacks,
) -> None:
    total = task.spec.trials
    failures = 0
    events.search(_finished(study), total, None, best_value(study))
    while _finished(study) < total:
        if _is_enough(task.spec, study, sampler):
            return
        trial = _next_trial(study, sampler)
        if trial is None:
            return  # the whole space was evaluated: that is an end, too
        state = run_trial(task, study, trial)
        failures = failures + 1 if state == TrialState.FAIL else 0
        if failures >= _FAILURES_IN_A_ROW:
            reason = study.trials[trial.number].user_attrs.get("failure", "")
            raise SearchError(
                f"{failures} trials failed one after the other, so the cause is not the function; "
                f"the last: {reason}"
            )
        frozen = study.get_trials(deepcopy=False)[trial.number]
        told(study, frozen)
        events.search(_finished(study), total, frozen, best_value(study))


def _is_enough(spec: StudySpec, study: optuna.Study, sampler: ActivationSampler) -> bool:
    if spec.stop.improvement is None or _finished(study) < spec.stop.least:
        return False
    return improvement_left(study, sampler) < spec.stop.improvement


def _next_trial(study: optuna.Study, sampler: ActivationSampler) -> Trial | None:
    """Return the trial to run now: an abandoned one, an enqueued one, or a new one.

    None where no function is left for a new one.
    """
    trials, abandoned = read_trials(study)
    if abandoned:
        return Trial(study, trials[min(abandoned)]._trial_id)
    if any(trial.state == TrialState.WAITING for trial in trials):
        return study.ask()
    if not sampler.remaining(study):
        return None
    # Born with its owner in one transaction: there is no moment in which it is nobody's.
    template = create_trial(
        state=TrialState.RUNNING, system_attrs={OWNER: Owner.me().as_attribute()}
    )
    template.datetime_start = datetime.now()
    return Trial(study, study._storage.create_new_trial(study._study_id, template))


def _finished(study: optuna.Study) -> int:
    return count(study.get_trials(deepcopy=False)).finished


def _keep_spec(spec: StudySpec) -> None:
    """Write the resolved study file to ``runs/<name>/study.json``."""
    folder = Path("runs") / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / ".study.json"
    temporary.write_text(json.dumps(json.loads(spec.model_dump_json()), indent=2) + "\n")
    temporary.replace(folder / "study.json")
