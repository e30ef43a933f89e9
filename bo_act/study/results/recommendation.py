"""Recommendation: which functions to try on a task, before any training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata

from bo_act import content
from bo_act.activations.expressions import Expression, parse
from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.sources import is_task_of, matched, same_runs
from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError, ExpressionError, SpecError
from bo_act.features.outputs import output_blocks
from bo_act.metrics import ACCURACY, Metric
from bo_act.search.recommendation import (
    FEWEST,
    LEVEL,
    Floats,
    Forecast,
    forecast,
    predicted,
    winsorized,
)
from bo_act.spaces.space import Space, load_space
from bo_act.specs import StudySpec
from bo_act.specs.base import whole
from bo_act.statistics import tied
from bo_act.tasks.configuration import REFERENCE


@dataclass(frozen=True)
class Recommended:
    """A function to try.

    Attributes:
        activation: the function.
        gain: expected over the present function, larger is better, in the recommendation's unit.
        low, high: 80% interval of the gain.
        chance: probability of being better than the present function.
        measured: gain in each source, in their order; None if the source lacks the function.

    Examples:
        >>> Recommended("tanh(x)", 0.01, -0.02, 0.04, 0.7, (0.03, -0.01)).chance
        0.7
    """

    activation: str
    gain: float
    low: float
    high: float
    chance: float
    measured: tuple[float | None, ...]


@dataclass(frozen=True)
class Recommendation:
    """Functions to try on a task, most promising first.

    Attributes:
        study: its name, or that of the space.
        over: the present function.
        sources: names of the benchmarks.
        metric: with the unit of the gains; None if sources and study have different metrics: gains
            are then differences of normal scores of ranks.
        functions: the recommended ones.
        left_out: unused benchmarks, of the study's own task.

    Examples:
        >>> function = Recommended("tanh(x)", 0.1, -0.2, 0.4, 0.7, (0.3, -0.1))
        >>> advice = Recommendation("mine", "relu(x)", ("a", "b"), None, (function,))
        >>> advice.as_json()["functions"][0]["measured"]
        {'a': 0.3, 'b': -0.1}
    """

    study: str
    over: str
    sources: tuple[str, ...]
    metric: Metric | None
    functions: tuple[Recommended, ...]
    left_out: tuple[str, ...] = ()

    @property
    def unit(self) -> str:
        """The unit of gains, for display."""
        return RANKS if self.metric is None else self.metric.differences

    @property
    def level(self) -> float:
        """Nominal coverage of the intervals."""
        return LEVEL

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return {
            "study": self.study,
            "over": self.over,
            "unit": self.unit,
            "metric": None if self.metric is None else self.metric.as_json(),
            "level": self.level,
            "sources": list(self.sources),
            "left_out": list(self.left_out),
            "functions": [
                asdict(function)
                | {"measured": dict(zip(self.sources, function.measured, strict=True))}
                for function in self.functions
            ],
        }


RANKS = "normal scores of ranks"
"""The unit of gains if metrics differ."""

_FEWEST_KNOWN = 3  # functions of a source that predict the others


def recommend(
    study: StudySpec | Space,
    *,
    top: int = 10,
    over: str | Expression | None = None,
    sources: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Recommendation:
    """Recommend functions for a task by their gains on other tasks, without any training.

    The expected gain is the mean over the sources, see ``forecast``. If a source lacks a function,
    a Gaussian process predicts its value from the function's outputs. Neither the network nor the
    data is read. Sources of the study's own task are left out.

    Args:
        study: its space, metric and task; or a space, to search with accuracy as the metric.
        top: number of functions.
        over: the present function; default: the first of ``confirm.baselines``, else ReLU.
        sources: names or paths of benchmarks; default: those known by name that have the study's
            metric, or all if fewer than two have it; of these the ones with a value of the present
            function, if two have one.
        progress: called with (sources read, number of sources).

    Raises:
        SpecError: the study has several activations, or its space is too large to be listed.
        BenchmarkError: fewer than two sources remain, or a source lacks the present function or
            has too few others.

    Examples:
        >>> import bo_act
        >>> recommendation = recommend(bo_act.read_study("quickstart"), top=5)
        >>> len(recommendation.functions), recommendation.over
        (5, 'relu(x)')
    """
    whole(top, "top", low=1)
    space = _listed(study)
    spec = study if isinstance(study, StudySpec) else None
    if over is None:
        over = next(iter(spec.confirm.baselines if spec else ()), REFERENCE)
    present = parse(str(over))
    used, left_out = _read(spec, sources, progress)
    metric = spec.measured if spec else ACCURACY
    if sources is None:
        # In the unit of the metric, if that is possible.
        alike = [source for source in used if _is_alike(source.metric, metric)]
        used = alike if len(alike) >= FEWEST else used
        # A part may lack the present function.
        knowing = [source for source in used if _measured(source, present) is not None]
        used = knowing if len(knowing) >= FEWEST else used
    same = all(_is_alike(source.metric, metric) for source in used)
    gains = [_gains(source, present, in_ranks=not same) for source in used]
    predicted_gains, measured = _forecast(space, used, gains)
    own = _index(space, present)
    chosen = [int(index) for index in predicted_gains.order if index != own][:top]
    return Recommendation(
        study.name,
        str(present),
        tuple(source.name for source in used),
        metric if same else None,
        tuple(
            Recommended(
                space.catalogue.text(index),
                float(predicted_gains.gain[index]),
                float(predicted_gains.low[index]),
                float(predicted_gains.high[index]),
                float(predicted_gains.chance[index]),
                tuple(float(gain) if np.isfinite(gain) else None for gain in measured[index]),
            )
            for index in chosen
        ),
        left_out,
    )


def _listed(study: StudySpec | Space) -> Space:
    """Return the space of a study, whose functions must be listed."""
    if isinstance(study, StudySpec) and study.activations:
        raise SpecError(
            f"recommendations need one activation for the whole network, and {study.name!r} has "
            f"{len(study.activations)} activations ({', '.join(study.activations)}); leave "
            "activations out of the study"
        )
    trees = isinstance(study, StudySpec) and study.candidates == "trees"
    space = load_space(study.space) if isinstance(study, StudySpec) else study
    if trees or not space.can_be_listed:
        raise SpecError(
            f"recommendations need a list of all functions, and the space {space.name!r} of "
            f"{len(space):,} expressions is searched without one; name a smaller space: "
            "--set space=act_bench"
        )
    return space


def _read(
    study: StudySpec | None,
    names: Sequence[str] | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Benchmark], tuple[str, ...]]:
    """Return the benchmarks to learn from, and the names of those of the study's own task."""
    wanted = list(dict.fromkeys(content.names("studies/benchmarks") if names is None else names))
    used: list[Benchmark] = []
    left_out = []
    for number, name in enumerate(wanted):
        if progress:
            progress(number, len(wanted))
        benchmark = open_benchmark(name)
        if study is not None and is_task_of(benchmark, study):
            left_out.append(benchmark.name)
        elif not any(same_runs(benchmark, other) for other in used):
            used.append(benchmark)
    if len(used) < FEWEST:
        raise BenchmarkError(
            f"expected at least {FEWEST} benchmarks of other tasks, got "
            f"{', '.join(source.name for source in used) or 'none'}"
            + (f" besides {', '.join(left_out)}, of the study's own task" if left_out else "")
            + "; name more, or leave the sources out to use those that bo-act ships"
        )
    return used, tuple(left_out)


def _is_alike(a: Metric, b: Metric) -> bool:
    return (a.name, a.direction, a.unit) == (b.name, b.direction, b.unit)


def _gains(benchmark: Benchmark, present: Expression, *, in_ranks: bool) -> Floats:
    """Return the gain of each of a benchmark's functions over the present one; NaN if unknown."""
    index = _measured(benchmark, present)
    if index is None:
        raise BenchmarkError(
            f"the benchmark {benchmark.name!r} has no value of the present function {present}, so "
            "gains over it are unknown there; give another with --over, e.g. --over 'relu(x)', or "
            "leave that benchmark out"
        )
    values = benchmark.metric.sign * benchmark.values
    if in_ranks:
        known = benchmark.measured
        ranks = (rankdata(tied(values[known])) - 0.5) / known.sum()
        values = np.full(len(values), np.nan)
        values[known] = norm.ppf(ranks)
    return np.asarray(values - values[index])


def _measured(benchmark: Benchmark, function: Expression) -> int | None:
    """Return a function's index in a benchmark; None if it has no value there."""
    index = _index(benchmark.space, function)
    return index if index is not None and benchmark.measured[index] else None


def _index(space: Space, function: Expression) -> int | None:
    try:
        return space.catalogue.index(function)
    except ExpressionError:
        return None


def _forecast(
    space: Space, used: Sequence[Benchmark], gains: Sequence[Floats]
) -> tuple[Forecast, Floats]:
    """Return the forecast for the functions of a space, and their measured gains, (N, S)."""
    catalogue = space.catalogue
    blocks = output_blocks(catalogue)
    present = blocks["outputs"].present  # others are not finite: nothing to recommend
    measured = np.full((len(catalogue), len(used)), np.nan)
    filled, variances = measured.copy(), np.zeros_like(measured)
    for column, (benchmark, gain, limited) in enumerate(
        zip(used, gains, winsorized(gains), strict=True)
    ):
        theirs, ours = matched(benchmark, space)
        measured[ours, column], filled[ours, column] = gain[theirs], limited[theirs]
        rows = np.flatnonzero(np.isnan(filled[:, column]) & present)
        if len(rows):
            known = benchmark.features.blocks
            count = int((np.isfinite(limited) & known["outputs"].present).sum())
            if count < _FEWEST_KNOWN:
                raise BenchmarkError(
                    f"the benchmark {benchmark.name!r} has {count} measured "
                    f"{'function' if count == 1 else 'functions'}, too few to predict those it "
                    f"lacks (at least {_FEWEST_KNOWN}); leave it out, or measure more"
                )
            filled[rows, column], variances[rows, column] = predicted(limited, known, blocks, rows)
    filled[~present] = np.nan
    return forecast(filled, variances), measured
