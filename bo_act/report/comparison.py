"""The report of a comparison: final regret of each method, and its uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bo_act.comparison.compare import Comparison
from bo_act.comparison.metrics import floor, progress, remarks
from bo_act.report.page import render
from bo_act.statistics import mean_intervals
from bo_act.study.storage.provenance import environment

_LEVEL = 0.05  # of p, adjusted


def comparison_report(comparison: Comparison, *, title: str = "comparison") -> str:
    """Return the report of a comparison as one self-contained HTML page.

    Args:
        comparison: the comparison.
        title: of the page.
    """
    frame = comparison.table
    methods = list(comparison.summary["methods"])
    return render(
        "comparison.html",
        {"panels": _panels(comparison), "metric": {"unit": "", "direction": "maximize"}},
        title=title,
        panels=list(comparison.benchmarks),
        methods=methods,
        unit=comparison.unit,
        verdict=_words(comparison.summary),
        columns=[(name, column >= 2) for column, name in enumerate(frame.columns)],
        lines=[
            [f"{v:.3g}" if isinstance(v, float) else v for v in row]
            for row in frame.astype(object).where(frame.notna(), "").itertuples(index=False)
        ],
        beaten=_beaten(comparison.summary, methods),
        runs=int(comparison.steps.groupby(["benchmark", "method"])["seed"].nunique().min()),
        evaluations=int(comparison.steps["evaluation"].max()),
        remarks=remarks(comparison.summary),
        compared_at=comparison.summary["compared_at"],
        here=environment(),
    )


def _panels(comparison: Comparison) -> list[dict[str, Any]]:
    runs = progress(comparison.steps, comparison.benchmarks)
    panels = []
    for name, benchmark in comparison.benchmarks.items():
        lines = []
        for (on, method), run in runs.items():
            if on != name:
                continue
            # If all runs found the best, the logarithm needs a lower end.
            least = floor(benchmark) / len(run.seeds)
            low, mean, high = (np.maximum(part, least) for part in mean_intervals(run.normalized))
            lines.append(
                {"name": method, "low": _short(low), "mean": _short(mean), "high": _short(high)}
            )
        panels.append({"label": "regret", "log": True, "lines": lines})
    return panels


def _short(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{v:.3g}") for v in values]


def _words(summed: Mapping[str, Any]) -> str:
    """Return a sentence on significant differences, with p adjusted for all pairs."""
    sure: dict[str, list[str]] = {}
    for pair in summed["comparisons"]:
        if pair["p_holm"] is None or pair["p_holm"] >= _LEVEL:
            continue
        if pair["probability"] > 0.5:
            sure.setdefault(pair["a"], []).append(pair["b"])
        else:
            sure.setdefault(pair["b"], []).append(pair["a"])
    others = len(summed["methods"]) - 1
    if not others:
        return "There is one method, and so nothing to compare."
    how = f"(p < {_LEVEL}, adjusted for all pairs by Holm's method)"
    if not sure:
        return f"No method beats another {how}."
    beaten = {name for names in sure.values() for name in names}
    winner = max(sure.keys() - beaten, key=lambda name: len(sure[name]), default="")
    if not winner:
        return f"Each method that beats another is beaten itself {how}."
    if len(sure[winner]) == others:
        return f"{winner} beats all others {how}."
    return (
        f"{winner} beats {', '.join(sure[winner])} {how}, and is not distinguishable from the "
        "others."
    )


def _beaten(summed: Mapping[str, Any], methods: list[str]) -> list[list[tuple[str, str]]]:
    """Return P(row beats column) and a word for each cell: better, worse, or none."""
    beaten: dict[tuple[str, str], tuple[str, str]] = {}
    for pair in summed["comparisons"]:
        if pair["probability"] is None:
            continue
        p, (low, high) = pair["probability"], pair["ci95"]
        clear = pair["p_holm"] < _LEVEL
        sure = "" if not clear else "better" if p > 0.5 else "worse"
        beaten[pair["a"], pair["b"]] = (f"{p:.2f} [{low:.2f}, {high:.2f}]", sure)
        other = {"better": "worse", "worse": "better", "": ""}[sure]
        beaten[pair["b"], pair["a"]] = (f"{1 - p:.2f} [{1 - high:.2f}, {1 - low:.2f}]", other)
    return [[beaten.get((a, b), ("", "")) for b in methods] for a in methods]
