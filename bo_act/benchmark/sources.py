"""Benchmarks as sources of a warm start, and which of them have the searched task."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.errors import ExpressionError
from bo_act.metrics import ACCURACY
from bo_act.search.warm_start import Source
from bo_act.spaces.space import Space
from bo_act.specs import AugmentationSpec, StudySpec

Floats = NDArray[np.float64]

_SHARE = 0.5  # of the common functions, above which two benchmarks have the same runs
_ROUNDING = 1e-5  # relative; Act-Bench files have six digits of medians
_COMPARED = tuple(name for name in MEASURED if name != "seconds")


def as_source(benchmark: Benchmark, space: Space) -> Source:
    """Return a benchmark as a source for the functions of a space.

    Functions are matched by their values, so the benchmark may have another space.

    Raises:
        SearchError: it has no function of the space.
    """
    values = np.full(len(space.catalogue), np.nan)
    theirs, ours = matched(benchmark, space)
    values[ours] = benchmark.metric.sign * benchmark.values[theirs]
    return Source(benchmark.name, values, benchmark.metric)


def same_task(a: Benchmark, b: Benchmark) -> bool:
    """Tell whether two benchmarks have the same task, whatever their names.

    Either they were built from the same study, except for seed, space and metric, or they share
    runs.
    """
    made = _task(a)
    return (made is not None and made == _task(b)) or same_runs(a, b)


def is_task_of(benchmark: Benchmark, study: StudySpec) -> bool:
    """Tell whether a benchmark was built from a study, except for seed, space and metric.

    Neither data nor network is read.
    """
    made = benchmark.provenance.get("study")
    if not isinstance(made, dict):
        return False
    try:
        theirs = StudySpec.model_validate({"name": "theirs", **made})  # of an older version, too
    except ValueError:
        return False
    return _trainings(described(theirs)) == _trainings(described(study))


def described(study: StudySpec) -> dict[str, Any]:
    """Return the part of a study file that decides what its trainings measure."""
    spec = study.model_dump(mode="json", include={"model", "data", "training", "seed"})
    for key in ("root", "download", "workers"):
        (spec["data"] or {}).pop(key, None)
    for key in ("device", "threads"):
        del spec["training"][key]
    if study.measured != ACCURACY:
        spec["metric"] = study.metric.model_dump(mode="json")
    if study.augmentation != AugmentationSpec():
        spec["augmentation"] = study.augmentation.model_dump(mode="json")
    return spec


def same_runs(a: Benchmark, b: Benchmark) -> bool:
    """Tell whether most common functions of two benchmarks have a run in common.

    One may have more functions or seeds, only the median or mean over the runs, or another metric.
    All common values (of one metric) and losses must agree, since accuracies alone may agree by
    chance. Functions without a loss tell nothing: most of those diverged, and are at chance in any
    task. Where no function has a loss, those tell nothing that have the most frequent value.
    """
    theirs, ours = matched(b, a.space)
    measured = a.measured[ours]
    ours, theirs = ours[measured], theirs[measured]
    pairs = np.ones((len(ours), 1, 1), dtype=bool)
    telling = np.zeros(len(ours), dtype=bool)
    for metric in _COMPARED:
        if metric.endswith("value") and a.metric != b.metric:
            continue
        mine, others = a.runs[metric][ours], b.runs[metric][theirs]
        known = np.asarray(np.isfinite(mine).any(axis=1) & np.isfinite(others).any(axis=1))
        pairs = pairs & (_equal_pairs(mine, others) | ~known[:, None, None])
        if metric.endswith("loss"):
            telling |= known
    ran = np.asarray(np.isfinite(_with_middles(a.runs["validation_value"][ours])))
    same = (pairs & ran[:, :, None]).any(axis=(1, 2))
    if not telling.any():
        telling = _unusual(a.values[ours]) & _unusual(b.values[theirs])
    return bool(telling.any() and same[telling].mean() > _SHARE)


def matched(benchmark: Benchmark, space: Space) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the measured functions of a benchmark and their indices in a space, (M,) each."""
    measured = np.flatnonzero(benchmark.measured)
    if benchmark.space.catalogue.hash == space.catalogue.hash:
        return measured, measured
    pairs = []
    for index in measured.tolist():
        try:
            ours = space.catalogue.index(benchmark.space.catalogue.expression(index))
        except ExpressionError:
            continue
        pairs.append((index, ours))
    theirs, here = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return theirs, here


def _task(benchmark: Benchmark) -> Any:
    """Return a benchmark's study without seed and space; None if unknown."""
    content, study = (benchmark.provenance.get(key) for key in ("content", "study"))
    if not isinstance(content, dict) or not isinstance(study, dict):
        return None
    return (
        {key: value for key, value in content.items() if key != "the space's functions"},
        _trainings(study),
    )


def _trainings(study: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the trainings of a study: all but the seed and what is measured."""
    return {key: value for key, value in study.items() if key not in ("seed", "metric")}


def _equal_pairs(a: Floats, b: Floats) -> NDArray[np.bool_]:
    """Tell which of (M, S) and (M, S') runs, and of their means and medians, are equal."""
    mine, theirs = _with_middles(a)[:, :, None], _with_middles(b)[:, None, :]
    return np.isclose(mine, theirs, rtol=_ROUNDING, atol=0.0, equal_nan=True)


def _with_middles(runs: Floats) -> Floats:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # functions without runs have no median
        middles = [np.nanmean(runs, axis=1), np.nanmedian(runs, axis=1)]
    return np.column_stack([runs, *middles])


def _unusual(values: Floats) -> NDArray[np.bool_]:
    """Tell which of (M,) values differ from the most frequent one."""
    known, counts = np.unique(values, return_counts=True)
    return np.asarray(values != known[counts.argmax()] if len(known) else values > 0)
