"""Sources of a warm start by name: benchmarks and earlier studies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from bo_act import library
from bo_act.activations.space import Space
from bo_act.benchmark.sources import as_source
from bo_act.benchmark.store import open_benchmark
from bo_act.errors import ContentNotFoundError, ExpressionError
from bo_act.search.warm_start import Source
from bo_act.spec_files import read_study
from bo_act.study.storage import load_study


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
        trials = load_study(spec).get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
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
    for trial in trials:
        text = trial.user_attrs.get("activation")
        if text is None or trial.value is None or not np.isfinite(trial.value):
            continue
        try:
            values[space.catalogue.index(text)] = trial.value
        except ExpressionError:
            continue
    return Source(name, values)
