"""Running a study: workers search, then the best functions are confirmed.

Before any new trial, workers take over the trials of dead processes, with their numbers and
functions. So a killed study resumes with the proposals of an undisturbed one, and loses none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import optuna

from bo_act.errors import SpecError
from bo_act.events import Events
from bo_act.io import atomic_write, reason
from bo_act.specs import StudySpec
from bo_act.specs.base import MOST_WORKERS, whole
from bo_act.study.results.confirmation import confirm, takes_fresh_seeds
from bo_act.study.results.summary import StudyResult, best_configurations, summarize
from bo_act.study.running.callbacks import Callback, Callbacks
from bo_act.study.running.ray_workers import search_with_ray
from bo_act.study.running.supervisor import search_with_workers
from bo_act.study.running.worker import compute_candidate_features, finished, make_sampler, search
from bo_act.study.sampling.warm_start import add_source_trials, read_sources, refuse_itself
from bo_act.study.storage.opening import open_study
from bo_act.study.storage.provenance import keep_environment
from bo_act.tasks.checks import check_before_search
from bo_act.tasks.configuration import places
from bo_act.tasks.task import Task
from bo_act.training.trainer import cpu_threads


def run_study(
    spec: StudySpec,
    *,
    workers: int = 1,
    executor: Literal["process", "ray"] = "process",
    events: Events | None = None,
    callbacks: Sequence[Callback] = (),
) -> StudyResult:
    """Run a study to its end, or resume it.

    Args:
        spec: the study; ``spec.trials`` counts all finished trials, including earlier calls.
        workers: number of parallel trials. A single worker runs in this process; several are
            processes, each with its own GPU if there are enough.
        executor: ``process`` runs them on this machine, ``ray`` on a Ray cluster.
        events: the progress listener.
        callbacks: ``callback(study, trial)`` to run after each trial, besides those in the study
            file. If one raises, bo-act warns once and continues; no trial is lost.

    Returns:
        The best functions, with fresh-seed results on the test set.

    Raises:
        BoActError: something in the study file, the data or the storage is wrong.

    Examples:
        >>> import bo_act
        >>> quick = {"trials": 3, "confirm.seeds": 0, "features.fim": False}
        >>> run_study(bo_act.read_study("quickstart", quick)).trials.complete
        3
    """
    whole(workers, "workers", low=1, high=MOST_WORKERS)
    if executor not in ("process", "ray"):
        raise SpecError(f"expected the executor 'process' or 'ray', got {executor!r}")
    events = events or Events()
    after_trial = Callbacks.of(spec, callbacks)
    task = Task.load(spec)
    confirms = takes_fresh_seeds(task)
    study = open_study(spec, optuna.samplers.RandomSampler(), content=task.content)
    _keep_spec(spec)
    events.opened(study)
    if finished(study) < spec.trials:
        check_before_search(task)
        keep_environment(study)
        refuse_itself(study, spec.warm_start.sources)
        features = compute_candidate_features(task, events, workers=workers)
        study.sampler = sampler = make_sampler(task, features, study)
        if most := spec.warm_start.as_trials:
            sources = read_sources(task.space, spec.warm_start.sources)
            add_source_trials(study, task.space, sources, most=most, activations=places(spec))
        if executor == "ray":
            search_with_ray(spec, study, workers=workers, events=events, callbacks=after_trial)
        elif workers > 1:
            search_with_workers(spec, study, workers=workers, events=events, callbacks=after_trial)
        else:
            with cpu_threads(spec.training.threads):
                search(task, study, sampler, events, after_trial)
    best = best_configurations(study, spec)
    confirmed = []
    if confirms:
        confirmed = confirm(task, study, best, events.confirmation, workers=workers)
    return summarize(study, spec, confirmed)


def _keep_spec(spec: StudySpec) -> None:
    """Write the resolved study file to ``runs/<name>/study.json``, for people to read."""
    path = Path("runs") / spec.name / "study.json"
    try:
        atomic_write(path, json.dumps(json.loads(spec.model_dump_json()), indent=2) + "\n")
    except OSError as error:
        warnings.warn(f"{path} cannot be written: {reason(error, 'do without')}", stacklevel=2)
