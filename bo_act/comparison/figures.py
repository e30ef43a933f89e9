"""Figures of comparisons: regret, ranks and suggestion times over evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bo_act.benchmark.table import Benchmark
from bo_act.comparison.metrics import Progress, floor, progress
from bo_act.errors import BenchmarkError
from bo_act.plot_style import COLUMN, PANEL, colour_and_stroke, panels, styled
from bo_act.statistics import mean_intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

_LEGEND = 1.2  # inches beside the panels
_IN_A_ROW = 4  # panels


@styled
def regret_curves(
    steps: DataFrame, benchmarks: Mapping[str, Benchmark], *, width: float | None = None
) -> Figure:
    """Draw the mean normalized regret, one panel per benchmark.

    Bands are 95% intervals of the mean over seeds by Student's t. The axis is logarithmic; a mean
    of zero is at its lower end. For ``width`` see ``Comparison.figures``.
    """
    runs = progress(steps, benchmarks)
    names = _names(runs, 0)
    figure, panels = _panels(len(names), width)
    for name, axes in zip(names, panels, strict=True):
        lowest = floor(benchmarks[name]) / len(next(iter(runs.values())).seeds)
        for method, style in _styles(_names(runs, 1)).items():
            if (name, method) in runs:
                ends = mean_intervals(runs[name, method].normalized)
                low, mean, high = (np.maximum(v, lowest) for v in ends)
                _line(axes, mean, low, high, style)
        axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("evaluations")
    for axes in panels:
        spec = axes.get_subplotspec()
        if spec is not None and spec.is_first_col():
            axes.set_ylabel("regret (1 = a random function)")
    return _with_legend(figure, _names(runs, 1), beside=width is None)


@styled
def rank_curves(
    steps: DataFrame, benchmarks: Mapping[str, Benchmark], *, width: float | None = None
) -> Figure:
    """Draw the mean rank among the methods, over all common benchmarks and seeds.

    In each paired run the method with the least regret has rank 1; ties share the mean rank. Bands
    are 95% intervals over seeds, for these benchmarks, by Student's t.
    """
    runs = progress(steps, benchmarks)
    methods = _names(runs, 1)
    everywhere = [
        name for name in _names(runs, 0) if all((name, method) in runs for method in methods)
    ]
    if not everywhere:
        raise BenchmarkError("expected a benchmark that every method ran on, got none")
    regret = _common([[runs[name, method] for method in methods] for name in everywhere])
    ranks = rankdata(regret, axis=1).mean(axis=0)
    figure, (axes,) = _panels(1, width)
    for position, style in enumerate(_styles(methods).values()):
        low, mean, high = mean_intervals(ranks[position])
        _line(axes, mean, low, high, style)
    axes.invert_yaxis()
    axes.set_xlabel("evaluations")
    axes.set_ylabel(f"mean rank among {len(methods)} methods")
    return _with_legend(figure, methods, beside=width is None)


@styled
def suggestion_times(steps: DataFrame, *, width: float | None = None) -> Figure:
    """Draw the median seconds of a suggestion, with a band from the 10th to the 90th percentile.

    The given initial design has none.
    """
    methods = [str(name) for name in dict.fromkeys(steps["method"])]
    figure, (axes,) = _panels(1, width)
    for method, style in _styles(methods).items():
        by_evaluation = steps[steps["method"] == method].groupby("evaluation")["suggest_seconds"]
        low, mid, high = (by_evaluation.quantile(q).to_numpy() for q in (0.1, 0.5, 0.9))
        _line(axes, mid, low, high, style)
    if steps["suggest_seconds"].notna().any():
        axes.set_yscale("log")
    axes.set_xlabel("evaluations")
    axes.set_ylabel("time of a suggestion (s)")
    return _with_legend(figure, methods, beside=width is None)


def _common(runs: Sequence[Sequence[Progress]]) -> NDArray[np.float64]:
    """Return (benchmarks, methods, seeds, evaluations) regret of the common seeds."""
    all_runs = [run for on_benchmark in runs for run in on_benchmark]
    seeds = reduce(np.intersect1d, [run.seeds for run in all_runs])
    length = min(run.regret.shape[1] for run in all_runs)
    return np.array(
        [
            [run.regret[np.isin(run.seeds, seeds), :length] for run in on_benchmark]
            for on_benchmark in runs
        ]
    )


def _names(runs: Mapping[tuple[str, str], Any], position: int) -> list[str]:
    return list(dict.fromkeys(key[position] for key in runs))


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        method: {**colour_and_stroke(position), "label": method}
        for position, method in enumerate(methods)
    }


def _line(
    axes: Axes,
    mid: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    style: Mapping[str, Any],
) -> None:
    x = np.arange(1, len(mid) + 1)
    axes.plot(x, mid, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.13, linewidth=0)


def _panels(count: int, width: float | None) -> tuple[Figure, list[Axes]]:
    if width is None:
        rows = -(-count // _IN_A_ROW)
        columns = -(-count // rows)
        width = COLUMN * columns + _LEGEND
        figure, axes = panels(rows, columns, width=width, height=rows * PANEL)
        for empty in axes[count:]:
            empty.remove()
        return figure, axes[:count]
    return panels(count, 1, width=width, height=0.66 * width * count + 0.4)


def _with_legend(figure: Figure, methods: Sequence[str], *, beside: bool) -> Figure:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **style) for style in _styles(methods).values()]
    if beside:
        figure.legend(handles=lines, loc="outside right center")
    else:
        figure.legend(handles=lines, loc="outside upper center", ncols=3)
    return figure
