"""Sources of a warm start by name: benchmarks and earlier studies."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from bo_act import content
from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.sources import as_source, same_runs
from bo_act.benchmark.table import Benchmark
from bo_act.errors import ContentNotFoundError, ExpressionError, SearchError
from bo_act.metrics import Metric
from bo_act.search.warm_start import Source, distinct
from bo_act.spaces.space import Space
from bo_act.specs.files import read_study
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.opening import load_study
from bo_act.study.storage.trials import SOURCE, own, own_trials, source_trials


def read_sources(space: Space, names: Sequence[str]) -> list[Source]:
    """Read benchmarks and studies as sources for the functions of a space.

    Functions are matched by their values, so a source may have another space. A source under
    several names (a copy, a link, another file format) counts once.

    Args:
        space: of the search.
        names: of benchmarks, or else of studies; a path to a ``.toml`` file is a study, any other
            path is a benchmark.

    Raises:
        ContentNotFoundError: there is neither a benchmark nor a study of that name.
        StorageError: the study has not been run.
        SearchError: a source has no function of the space.

    Examples:
        >>> import bo_act
        >>> space = bo_act.load_space("act_bench")
        >>> len(read_sources(space, ["digits_mlp", "digits_small_cnn"]))
        2
    """
    benchmarks: list[Benchmark] = []
    sources = []
    for name in dict.fromkeys(names):
        if not _is_benchmark(name):
            study = _load(name)
            trials = own_trials(study, TrialState.COMPLETE)
            metric = metric_of(study)
            sources.append(trials_as_source(study.study_name, space, trials, metric))
            continue
        benchmark = open_benchmark(name)
        if not any(same_runs(benchmark, other) for other in benchmarks):
            benchmarks.append(benchmark)
            sources.append(as_source(benchmark, space))
    return distinct(sources)


def refuse_itself(study: Study, names: Sequence[str]) -> None:
    """Check that no source of a study is the study itself.

    Args:
        study: with the warm start.
        names: of the sources, as for ``read_sources``.

    Raises:
        SearchError: a source is the study, perhaps under another name, or a copy of it.
    """
    ours = {trial.datetime_start for trial in own_trials(study)} - {None}
    for name in names:
        if _is_benchmark(name):
            continue
        other = _load(name)
        theirs = {trial.datetime_start for trial in own_trials(other)} - {None}
        if ours & theirs or (not theirs and other.study_name == study.study_name):
            raise SearchError(
                f"warm_start.sources: {name!r} is the study {study.study_name!r} itself, which "
                "learns from its own trials anyway; leave it out"
            )


def _load(name: str) -> Study:
    return load_study(read_study(name))


def _is_benchmark(name: str) -> bool:
    if Path(name).suffix or "/" in name:
        return Path(name).suffix != ".toml"
    try:
        content.find("studies/benchmarks", name)
    except ContentNotFoundError:
        return False
    return True


def trials_as_source(
    name: str, space: Space, trials: Sequence[FrozenTrial], metric: Metric | None = None
) -> Source:
    """Return the values of a study's complete trials as a source for a space.

    A function has the mean of its repeated trials; with several settings, that of the best ones.

    Args:
        name: of the study.
        space: of the search.
        trials: of the study.
        metric: of the study; default: a value without a unit, larger is better.
    """
    sign = 1.0 if metric is None else metric.sign
    runs: dict[tuple[str, str], list[float]] = {}
    for trial in own(trials):
        text = trial.user_attrs.get("activation")
        if text is not None and trial.value is not None and np.isfinite(trial.value):
            runs.setdefault((text, repr(sorted(trial.params.items()))), []).append(trial.value)
    values = np.full(len(space.catalogue), np.nan)
    for (text, _), repeats in runs.items():
        with suppress(ExpressionError):
            index = space.catalogue.index(text)
            values[index] = np.fmax(values[index], sign * np.mean(repeats))
    return Source(name, values, metric)


def add_source_trials(
    study: Study,
    space: Space,
    sources: Sequence[Source],
    *,
    most: int = 100,
    activations: Sequence[str] = ("",),
) -> int:
    """Add the best functions of sources to a study as finished trials, for Optuna's tools.

    Each has the source's name in its user attribute ``source``, and bo-act ignores it: it is no
    observation, is in no count, and is neither best nor confirmed. Tools that do not know the
    attribute (Optuna's ``best_trial``, pruners, a dashboard's best-value curve) see ordinary
    trials, with values from another task.

    Args:
        study: of the space.
        space: of the study and the sources.
        sources: to add; existing trials are not added again.
        most: number of functions per source, the best ones.
        activations: of the study; a function fills all of them.

    Returns:
        The number of added trials.

    Raises:
        SearchError: the metric of a source has another direction than the study's.

    Examples:
        >>> import optuna, bo_act
        >>> space = bo_act.load_space("act_bench")
        >>> study = optuna.create_study(direction="maximize")
        >>> add_source_trials(study, space, bo_act.read_sources(space, ["digits_mlp"]), most=3)
        3
        >>> study.trials[0].user_attrs["source"]
        'digits_mlp'
    """
    metric = metric_of(study)
    for source in sources:
        if source.metric is not None and source.metric.direction != metric.direction:
            raise SearchError(
                f"the source {source.name!r} measures {source.metric}, and the study {metric}: "
                "its ranks can inform the search, but its values cannot become trials; leave "
                "warm_start.as_trials out"
            )
    existing = {
        (trial.user_attrs[SOURCE], trial.user_attrs.get("activation"))
        for trial in source_trials(study)
    }
    added = []
    for source in sources:
        known = int(np.isfinite(source.values).sum())
        order = np.argsort(-source.values, kind="stable")[: min(most, known)]  # NaN comes last
        for index in order.tolist():
            text = space.catalogue.text(index)
            if (source.name, text) in existing:
                continue
            slots = space.catalogue.params(index)
            named = {name: f"{name}." if name else "" for name in activations}
            params = {start + slot: v for start in named.values() for slot, v in slots.items()}
            choices = {slot: d for name in activations for slot, d in space.slots(name).items()}
            added.append(
                create_trial(
                    value=metric.sign * float(source.values[index]),
                    params=params,
                    distributions={slot: choices[slot] for slot in params},
                    user_attrs={SOURCE: source.name, "activation": text, "index": index},
                )
            )
    study.add_trials(added)
    return len(added)
