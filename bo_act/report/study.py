"""The report of a study: result, verdict, and the course of the search."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from bo_act.activations.formulas import mathml
from bo_act.activations.learnt import LEARNT, Learnt, read_learnt
from bo_act.activations.plots import graph, sample, windows
from bo_act.html import Markup, escape
from bo_act.io import expanded
from bo_act.report.data import ReportData
from bo_act.report.embedding_map import LayerSpectra
from bo_act.report.front import front_report
from bo_act.report.loaded_study import LoadedStudy, readable
from bo_act.report.page import line, numbers, packed, render, whisker, write
from bo_act.report.predictions import LEVEL, Calibration
from bo_act.report.trials import Row, best_so_far, end_of_interest
from bo_act.spaces.costs import cost
from bo_act.study.results.confirmation import confirmed_runs
from bo_act.study.results.summary import best_configurations
from bo_act.study.results.verdict import caveats, judged, sampled, with_interval
from bo_act.study.sampling.sampler import ActivationSampler
from bo_act.study.storage.provenance import environments
from bo_act.tasks.configuration import REFERENCE, functions_of, shown

_CURVE = 41  # points of a graph on the map
_LEARNT = 12  # places of a network with drawn functions
_BASELINES = ("relu(x)", "gelu(x)", "swish(x)")


def study_report(subject: LoadedStudy) -> str:
    """Return the report of a study as one self-contained HTML page.

    Args:
        subject: see ``load_for_report``, or made by hand from a study and its sampler.
    """
    if len(subject.study.directions) > 1:
        return front_report(subject)
    report = ReportData(subject)
    spec = subject.spec
    counts = {
        state: sum(row.state == state for row in report.rows)
        for state in ("complete", "diverged", "pruned", "failed", "running", "waiting")
    }
    layers, spectra_note = report.spectra
    fitted, calibration_note = report.calibration
    values = report.metric.texts([row.value for row in report.rows])
    data = {
        "metric": {**subject.metric.as_json(), "axis": subject.metric.axis},
        "progress": _progress(report),
        "map": _map(report),
        "spectra": _spectra(layers),
        "calibration": _calibration(fitted, report),
        "importances": report.importances[0],
    }
    return render(
        "study.html",
        data,
        title=subject.study.study_name,
        description=spec.description if spec else "",
        metric=subject.metric,
        verdict=report.verdict,
        caveats=[
            *(report.result.notes if report.result else ()),
            *caveats(report.confirmed, report.metric),
        ],
        failures=report.failures,
        nothing=report.lacking,
        hero=_hero(report),
        confirmed=_confirmed(report),
        top=_top(report),
        learnt=_learnt(report),
        counts={state: count for state, count in counts.items() if count},
        wanted=spec.trials if spec else None,
        lacking=subject.lacking,
        embedding_map=report.embedding_map,
        predicted=bool(report.predictions),
        places=[name or "function" for name in subject.activations],
        layers=bool(layers),
        spectra_note=spectra_note,
        fitted=fitted,
        level=round(100 * LEVEL),
        calibration_note=calibration_note,
        importances_note=report.importances[1],
        rows=[_cells(*pair) for pair in zip(report.rows, values, strict=True)],
        has_settings=any(row.settings for row in report.rows),
        resolved=json.dumps(json.loads(spec.model_dump_json()), indent=2) if spec else "",
        storage=report.result.storage if report.result else "",
        environments=environments(subject.study),
    )


# --- the answer -----------------------------------------------------------------------------


def _value(value: float | None, data: ReportData) -> str:
    return "" if value is None else data.metric.text(value)


def _picture(text: str, *, width: int = 84, height: int = 56) -> Markup:
    """Draw the functions of a configuration."""
    shown_ = [readable(function) for function in functions_of(text).values()]
    graphs = [graph(e, beside=REFERENCE, width=width, height=height) for e in shown_ if e]
    return Markup("".join(graphs))


def _formula(text: str) -> Markup:
    """Typeset the functions of a configuration, with names if there are several."""
    parts = []
    for name, function in functions_of(text).items():
        expression = readable(function)
        formula = escape(function) if expression is None else mathml(expression)
        parts.append(f"<small>{escape(name)}</small> {formula}" if name else formula)
    return Markup("<br>".join(parts))


def _cost(text: str, data: ReportData) -> str:
    """Return the cost of a function in units of ReLU's; of several, the mean."""
    expressions = [readable(function) for function in functions_of(text).values()]
    known = [expression for expression in expressions if expression]
    if not known or len(known) < len(expressions):
        return ""
    times = data.times(known)
    costs = [cost(expression, times) for expression in known]
    mean = sum(costs) / len(costs)
    return f"{mean:.1f}x" if mean < 10 else f"{mean:.0f}x"


def _hero(data: ReportData) -> dict[str, Any] | None:
    """Return the best function, drawn large."""
    if not data.best:
        return None
    text = data.best[0]
    row = data.verdict.winner if data.verdict else None
    numbers_ = []
    if row is not None:
        numbers_.append(
            (
                row.of(data.metric),
                with_interval(row.test, data.metric),
                f"{row.seeds} fresh seeds",
            )
        )
        if row.minus_relu is not None:
            shown_ = with_interval(row.minus_relu, data.metric, signed=True)
            label = "points" if data.metric.in_percent else "difference"
            over = f"paired, 95% {sampled([row.minus_relu])}"
            numbers_.append((f"{label} against ReLU", shown_, over))
    elif data.ranked:
        best = data.ranked[0]
        value, label = _value(best.value, data), f"best {data.metric.name}"
        numbers_.append((label, value, f"trial {best.number}, one run"))
    if price := _cost(text, data):
        numbers_.append(("cost of the function", f"{price} ReLU", "estimated from its operators"))
    seconds = _seconds(data)
    if text in seconds and seconds.get(REFERENCE):
        ratio = seconds[text] / seconds[REFERENCE]
        numbers_.append(("training time", f"{ratio:.2f}x ReLU", "median, measured"))
    return {
        "text": text,
        "functions": functions_of(text),
        "options": _options(data),
        "formula": _formula(text),
        "graph": _picture(text, width=300, height=200),
        "settings": shown(row.settings) if row else "",
        "numbers": numbers_,
    }


def _options(data: ReportData) -> str:
    """Return the options of ``Activation``."""
    spec = data.subject.spec
    options = spec.activation.options if spec else {}
    return "".join(f", {name}={value!r}" for name, value in options.items() if value)


def _runs(data: ReportData) -> dict[str, list[dict[str, Any]]]:
    spec, study = data.subject.spec, data.subject.study
    if spec is None or not data.confirmed:
        return {}
    return confirmed_runs(spec, study, best_configurations(study, spec))


def _seconds(data: ReportData) -> dict[str, float]:
    return {
        text: float(np.median([run["seconds"] for run in runs]))
        for text, runs in _runs(data).items()
        if runs and all("seconds" in run for run in runs)
    }


def _confirmed(data: ReportData) -> dict[str, Any] | None:
    """Return the table of the confirmation, with differences from every baseline."""
    if not data.confirmed:
        return None
    baselines = [row.activation for row in data.confirmed if row.role == "baseline"]
    if REFERENCE not in baselines:
        baselines.insert(0, REFERENCE)
    seconds = _seconds(data)
    # A function that diverged with some seeds would compress all others.
    steady = [row.test for row in data.confirmed if not row.diverged] or [
        row.test for row in data.confirmed
    ]
    edges = [e for test in steady for e in (test.mean, test.low, test.high) if e is not None]
    ends = (min(edges), max(edges))
    lines = []
    for row in data.confirmed:
        differences = []
        for other in baselines:
            if other not in row.minus:
                differences.append(("", ""))
                continue
            minus = row.minus[other]
            sure = {"better": "better", "worse": "worse"}.get(judged(minus, data.metric), "")
            differences.append((with_interval(minus, data.metric, signed=True), sure))
        lines.append(
            {
                "role": row.role,
                "text": row.activation,
                "formula": _formula(row.activation),
                "graph": _picture(row.activation),
                "settings": shown(row.settings),
                "diverged": f"{row.diverged} of {row.seeds} diverged" if row.diverged else "",
                "test": with_interval(row.test, data.metric),
                "whisker": whisker(row.test.mean, row.test.low, row.test.high, ends),
                "differences": differences,
                "validation": _value(row.validation.mean, data),
                "cost": _cost(row.activation, data),
                "seconds": f"{seconds[row.activation]:.3g} s" if row.activation in seconds else "",
            }
        )
    return {
        "baselines": baselines,
        "lines": lines,
        "seeds": data.confirmed[0].seeds,
        "on": data.confirmed[0].on,
        "data": data.confirmed[0].data,
    }


def _learnt(data: ReportData) -> dict[str, Any] | None:
    """Return the functions of the best trial with learnt scales, before and after training."""
    subject = data.subject
    trials = {trial.number: trial for trial in subject.trials}
    for row in data.ranked:
        learnt = read_learnt(trials[row.number].user_attrs.get(LEARNT))
        if learnt:
            indices = np.unique(np.linspace(0, len(learnt) - 1, min(len(learnt), _LEARNT)).round())
            return {
                "trial": row.number,
                "total": len(learnt),
                "places": [_drawn(learnt[int(index)]) for index in indices],
            }
    return None


def _drawn(learnt: Learnt) -> dict[str, Any]:
    first, *others = learnt.after
    note = f"{len(learnt.after)} of {learnt.channels} channels" if learnt.channels else "the layer"
    return {
        "place": learnt.place,
        "graph": graph(first, others=others, beside=learnt.before, width=150, height=100),
        "formula": mathml(first) if not others else "",
        "note": note,
    }


def _top(data: ReportData) -> list[dict[str, Any]]:
    best = data.ranked[:10]
    values = data.metric.texts([row.value for row in best])
    return [
        {
            "parts": [(text, _formula(text), _picture(text)) for text in row.functions],
            "settings": row.settings,
            "value": value,
            "trial": row.number,
        }
        for row, value in zip(best, values, strict=True)
    ]


def _cells(row: Row, value: str) -> dict[str, Any]:
    return {
        "row": row,
        "functions": ", ".join(row.functions),
        "value": "" if row.value is None else value,
        "sort": "" if row.value is None else f"{row.value:.8g}",
        "curve": line(row.curve),
        "seconds": "" if row.seconds is None else f"{row.seconds:.3g}",
    }


# --- what the scripts draw ------------------------------------------------------------------


def _progress(data: ReportData) -> dict[str, Any] | None:
    if not data.rows:
        return None
    values = [row.value for row in data.ranked if row.value is not None]
    places = len(data.subject.activations)
    lines = {}
    for text in _BASELINES:
        own = [row.value or 0.0 for row in data.ranked if row.functions == (text,) * places]
        if own:
            lines[text] = own[0]
    return {
        "number": [row.number for row in data.rows],
        "value": [row.value for row in data.rows],
        "last": [row.curve[-1] if row.curve else None for row in data.rows],
        "state": [row.state for row in data.rows],
        "by": [row.by for row in data.rows],
        "text": [
            ", ".join(row.functions) + (f" ({row.settings})" if row.settings else "")
            for row in data.rows
        ],
        "best": best_so_far(data.rows, data.metric),
        "lines": lines,
        "from": end_of_interest(values, data.metric, lines.values()) if values else None,
    }


def _map(data: ReportData) -> dict[str, Any] | None:
    land = data.embedding_map
    if land is None or not len(land.shown):
        return None
    expressions = [readable(text) for text in land.texts]
    values = sample([e for e in expressions if e is not None], _CURVE)
    low, high = windows(values)
    sign = data.metric.sign
    of_trial = {row.number: row for row in data.rows}
    good = [row.value for row in data.ranked if row.value is not None]
    return {
        "text": land.texts,
        "total": land.total,
        "x": numbers(land.points[:, 0]),
        "y": numbers(land.points[:, 1]),
        "curves": packed(values, low, high),
        "points": _CURVE,
        "low": numbers(low, 3),
        "high": numbers(high, 3),
        "median": [numbers(sign * p.median[land.shown], 5) for p in data.predictions],
        "deviation": [numbers(p.deviation[land.shown], 3) for p in data.predictions],
        "unit": data.predictions[0].unit if data.predictions else "",
        "from": end_of_interest(good, data.metric) if good else None,
        "trials": [
            [
                [number, position, of_trial[number].value, of_trial[number].state]
                for number, position in of_activation
            ]
            for of_activation in land.trials
        ],
    }


def _spectra(layers: Sequence[LayerSpectra]) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer.layer,
            "curves": [
                {"text": text, "x": numbers(x), "null": round(null, 4)}
                for text, (x, null) in layer.curves.items()
            ],
        }
        for layer in layers
    ]


def _calibration(fitted: Calibration | None, data: ReportData) -> dict[str, Any] | None:
    if fitted is None:
        return None
    sign = data.metric.sign
    columns = (fitted.measured, fitted.predicted, fitted.low, fitted.high)
    measured, predicted, low, high = (numbers(sign * column, 5) for column in columns)
    if sign < 0:
        low, high = high, low
    return {
        "measured": measured,
        "predicted": predicted,
        "low": low,
        "high": high,
        "from": end_of_interest([v for v in measured if v is not None], data.metric),
    }


def write_report(
    study: optuna.Study, sampler: ActivationSampler | None, path: str | os.PathLike[str]
) -> Path:
    """Write the report of your own study: one self-contained HTML file.

    Args:
        study: with functions from ``space.suggest``, in any storage.
        sampler: of the study, for predictions and the map of the space; None: without them.
        path: of the file.

    Returns:
        The path.

    Raises:
        BoActError: the file cannot be written, or the extra ``report`` is not installed.

    Examples:
        >>> import optuna, bo_act
        >>> space = bo_act.load_space("classic")
        >>> sampler = bo_act.ActivationSampler(space)
        >>> study = optuna.create_study(direction="maximize", sampler=sampler)
        >>> study.optimize(lambda trial: len(str(space.suggest_expression(trial))), n_trials=8)
        >>> bo_act.write_report(study, sampler, "report.html").name
        'report.html'
    """
    file = expanded(Path(path))
    write(study_report(LoadedStudy(study, sampler=sampler)), file)
    return file
