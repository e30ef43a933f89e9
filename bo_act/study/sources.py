"""Sources of a warm start by name: benchmarks and earlier studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from bo_act import library
from bo_act.activations.space import Space
from bo_act.benchmark.sources import as_source
from bo_act.benchmark.store import open_benchmark
from bo_act.errors import ContentNotFoundError, ExpressionError
from bo_act.search.warm_start import Source
from bo_act.spec_files import read_study
from bo_act.study.storage import load_study
from bo_act.study.trials import SOURCE, own, own_trials, source_trials


def read_sources(space: Space, names: Sequence[str]) -> list[Source]:
    """Read what benchmarks and studies say of the functions of a space.

    Functions are matched by what they compute, so that a source's space may be another one.

    Args:
        space: of the search.
        names: of benchmarks, or of studies where there is no benchmark of that name; a path to a
            ``.toml`` file is a study, any other path is a benchmark.

    Raises:
        ContentNotFoundError: neither a benchmark nor a study of that name.
        StorageError: the study has not been run.
        SearchError: a source has no function of the space.
    """
    return [_read(space, name) for name in dict.fromkeys(names)]


def _read(space: Space, name: str) -> Source:
    if Path(name).suffix == ".toml" or not _is_benchmark(name):
        spec = read_study(name)
        trials = own_trials(load_study(spec), TrialState.COMPLETE)
        return trials_as_source(spec.name, space, trials)
    return as_source(open_benchmark(name), space)


def _is_benchmark(name: str) -> bool:
    if Path(name).suffix or "/" in name:
        return True
    try:
        library.find("studies/benchmarks", name)
    except ContentNotFoundError:
        return False
    return True


def trials_as_source(name: str, space: Space, trials: Sequence[FrozenTrial]) -> Source:
    """Return what the complete trials of a study say of the functions of a space."""
    values = np.full(len(space.catalogue), np.nan)
    for trial in own(trials):
        text = trial.user_attrs.get("activation")
        if text is None or trial.value is None or not np.isfinite(trial.value):
            continue
        try:
            values[space.catalogue.index(text)] = trial.value
        except ExpressionError:
            continue
    return Source(name, values)


def add_source_trials(
    study: Study,
    space: Space,
    sources: Sequence[Source],
    *,
    most: int = 100,
    activations: Sequence[str] = ("",),
) -> int:
    """Add what sources say to a study as finished trials, for those who look at it elsewhere.

    Each has the source's name in its user attribute ``source``, and nothing here takes it for one
    of the study: it is no observation, is in no count, and is neither best nor confirmed. What
    reads the study without this attribute (Optuna's ``best_trial``, pruners, a dashboard's curve of
    the best value) sees trials like any other, with values that were measured on another task.

    Args:
        study: of the space.
        space: of the study and the sources.
        sources: what to add; trials that are there already are not added again.
        most: of each source, how many, the best first.
        activations: of the study; a function stands in all of them.

    Returns:
        How many were added.
    """
    sign = 1.0 if study.direction == StudyDirection.MAXIMIZE else -1.0
    there = {
        (trial.user_attrs[SOURCE], trial.user_attrs.get("activation"))
        for trial in source_trials(study)
    }
    added = []
    for source in sources:
        known = int(np.isfinite(source.values).sum())
        order = np.argsort(-source.values, kind="stable")[: min(most, known)]  # NaN comes last
        for index in order.tolist():
            text = space.catalogue.text(index)
            if (source.name, text) in there:
                continue
            slots = space.catalogue.params(index)
            named = {name: f"{name}." if name else "" for name in activations}
            params = {start + slot: v for start in named.values() for slot, v in slots.items()}
            choices = {slot: one for name in activations for slot, one in space.slots(name).items()}
            added.append(
                create_trial(
                    value=sign * float(source.values[index]),
                    params=params,
                    distributions={slot: choices[slot] for slot in params},
                    user_attrs={SOURCE: source.name, "activation": text, "index": index},
                )
            )
    study.add_trials(added)
    return len(added)
