"""Selection bias of a benchmark's best: their values with another seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from bo_act.benchmark.table import Benchmark
from bo_act.errors import BenchmarkError
from bo_act.statistics import rank_correlation

_FEWEST = 3  # functions of a correlation


def selection_bias(benchmark: Benchmark, *, top: int = 10) -> dict[str, Any]:
    """Compare the runs of the same functions.

    Each run in turn is held out, and functions are chosen by the mean of the others. The values
    that they were chosen by are biased upwards; the held-out run is not. If some functions have
    fewer runs, the others may have been repeated because of their first run (``repeat_best``), so
    that one is not held out.

    Args:
        benchmark: with at least two runs; functions without all of them are left out.
        top: number of best functions.

    Returns:
        In the unit of the stored values, averaged over the held-out runs: ``correlation``
        (Spearman) of a run with the mean of the others over all functions, and ``correlation_top``
        within the best fifth by the others (NaN if it has fewer than three functions);
        ``deviation``, the median over that fifth of the standard deviation between runs;
        ``chosen``, the best function's value in the choice; ``held_out``, its value in the held-out
        run; ``shrinkage``, their difference; ``regret``, how much worse ``held_out`` is than the
        best value of the held-out run (itself biased); ``regret_of_mean``, how much worse the
        chosen one is than the best by the mean of all runs, in that mean; ``kept``, the share of
        the ``top`` that is also in the top of the held-out run; and the number of ``runs`` and
        ``functions``.

    Raises:
        BenchmarkError: there is only one run of each function.
    """
    sign = benchmark.metric.sign
    runs = sign * benchmark.runs["validation_value"]
    complete = np.isfinite(runs).all(axis=1)
    repeated = int(complete.sum() < benchmark.measured.sum())
    runs = runs[complete]
    count = runs.shape[1]
    if count < 2 or len(runs) < 5:
        raise BenchmarkError(
            f"expected at least two runs of at least five functions to measure selection bias, got "
            f"{count} runs of {len(runs)} functions; build with more --seeds"
        )
    mean = runs.mean(axis=1)
    figures: dict[str, list[float]] = {}
    for held_out in range(repeated, count):
        others = np.delete(runs, held_out, axis=1).mean(axis=1)
        fresh = runs[:, held_out]
        order = np.argsort(-others, kind="stable")
        fifth, best = order[: len(order) // 5], order[0]
        size = min(top, len(order))
        again = np.argsort(-fresh, kind="stable")[:size]
        for name, value in {
            "correlation": rank_correlation(others, fresh),
            "correlation_top": rank_correlation(others[fifth], fresh[fifth])
            if len(fifth) >= _FEWEST
            else np.nan,
            "deviation": np.median(runs[fifth].std(axis=1, ddof=1)),
            "chosen": sign * others[best],
            "held_out": sign * fresh[best],
            "shrinkage": others[best] - fresh[best],
            "regret": fresh.max() - fresh[best],
            "regret_of_mean": mean.max() - mean[best],
            "kept": len(set(again) & set(order[:size])) / size,
        }.items():
            figures.setdefault(name, []).append(float(value))
    means = {name: float(np.mean(values)) for name, values in figures.items()}
    return means | {"runs": count, "functions": len(runs)}
