"""The report of a study with several objectives: its Pareto front, and its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from optuna.trial import TrialState

from bo_act.activations.formulas import mathml
from bo_act.activations.plots import graph
from bo_act.html import Markup
from bo_act.metrics import Metric
from bo_act.report.loaded_study import LoadedStudy, readable
from bo_act.report.page import render
from bo_act.report.trials import rows
from bo_act.study.results.summary import result_of
from bo_act.study.storage.metric import metrics_of
from bo_act.study.storage.provenance import environments
from bo_act.tasks.configuration import REFERENCE, functions_of, shown


def front_report(subject: LoadedStudy) -> str:
    """Return the report of a study with several objectives as one HTML page.

    Args:
        subject: see ``study_report``.
    """
    study, metrics = subject.study, metrics_of(subject.study)
    result, trials = result_of(study, None), rows(subject)
    done = [t.values if t.state == TrialState.COMPLETE else None for t in subject.trials]
    return render(
        "front.html",
        {"metric": {**metrics[0].as_json(), "axis": metrics[0].axis}},
        title=study.study_name,
        counts=Counter(row.state for row in trials),
        metrics=list(map(str, metrics)),
        front=[
            {
                "text": function.activation,
                "graph": _drawn(function.activation),
                "formula": _formulas(function.activation),
                "settings": shown(function.settings),
                "cells": cells,
                "trial": function.trial,
            }
            for function, cells in zip(
                result.front, _cells([f.values for f in result.front], metrics), strict=True
            )
        ],
        nothing=result.lacking,
        failures=result.failures,
        rows=[
            {"row": row, "cells": cells}
            for row, cells in zip(trials, _cells(done, metrics), strict=True)
        ],
        environments=environments(study),
    )


def _cells(
    values: Sequence[Sequence[float] | None], metrics: Sequence[Metric]
) -> list[tuple[str, ...]]:
    """Return the values of each line as text, those of a column with as many decimals each."""
    columns = [
        metric.texts([None if line is None else line[column] for line in values])
        for column, metric in enumerate(metrics)
    ]
    return list(zip(*columns, strict=True))


def _drawn(text: str) -> Markup:
    functions = [readable(function) for function in functions_of(text).values()]
    return Markup("".join(graph(e, beside=REFERENCE, width=84, height=56) for e in functions if e))


def _formulas(text: str) -> Markup:
    functions = [readable(function) for function in functions_of(text).values()]
    return Markup(" ".join(mathml(e) for e in functions if e))
