"""Confirmation: the best functions trained again with fresh seeds and measured on the test set.

The search selects by validation values of one seed, so its best value has a selection bias.
Confirmation therefore measures the best functions and the baselines again, with the same fresh
seeds, on the test set, with intervals over seeds and test examples. If other parameters are
searched too, each function is trained with the best settings that the search tried with it. Every
run is saved in the study, with its values per test example, so that you can resume a confirmation.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.errors import SearchError
from bo_act.metrics import Metric
from bo_act.specs import StudySpec
from bo_act.specs.base import derived_seed
from bo_act.study.results.confirmation_runs import Run, measured
from bo_act.study.results.confirmed import Confirmed, Tested, interval, tested_runs
from bo_act.study.results.failures import state_of
from bo_act.study.storage.trials import averaged, own_trials
from bo_act.study.storage.trials import measured as finite
from bo_act.tasks.configuration import REFERENCE, Configuration
from bo_act.tasks.task import Task
from bo_act.user_code.failures import Failure

FRESH = 10_000
"""Offset of the first confirmation seed from the study's seed, which the search uses."""

_FAILURES_IN_A_ROW = 5  # after which the cause lies outside the functions


def confirm(
    task: Task,
    study: optuna.Study,
    best: Sequence[Configuration],
    progress: Callable[[int, int, str], None] | None = None,
    *,
    workers: int = 1,
) -> list[Confirmed]:
    """Train the found functions and the baselines with fresh seeds; measure them on the test set.

    A failed training is recorded in the study; the next call repeats it.

    Args:
        task: to train on.
        study: stores the results; the ones it has are not measured again.
        best: functions of the search, best first.
        progress: called with (runs done, number of runs, the latest function).
        workers: number of training processes; this one saves the results.

    Returns:
        The found functions in their order, then the baselines; empty if none was found.

    Raises:
        SearchError: several training runs in a row fail.
    """
    if not best:
        return []
    wanted = _wanted(task.spec, study, best)
    first = derived_seed(task.spec.seed, FRESH)
    seeds = range(task.spec.confirm.seeds)
    runs = [Run.of(function, seed, first=first) for seed in seeds for function in wanted.values()]
    saved = study.user_attrs
    todo = [run for run in runs if _attribute(run.configuration, run.seed) not in saved]
    done = len(runs) - len(todo)
    if progress and runs:
        progress(done, len(runs), "")
    in_a_row = 0
    for run, row in measured(task, todo, workers):
        key = _attribute(run.configuration, run.seed)
        content = {"activation": run.configuration.text, "seed": run.seed, **row}
        if row.get("test", 0.0) is None:
            content |= dict.fromkeys(("test", "validation"), _worst(task.spec, study))
        failed = "failure" in row
        study.set_user_attr(_failed(key) if failed else key, content)
        in_a_row = in_a_row + 1 if failed else 0
        if in_a_row >= _FAILURES_IN_A_ROW:
            raise SearchError(
                f"{in_a_row} training runs of the confirmation failed in a row; the last: "
                f"{Failure.read(row['failure'])}; finished training runs are saved, and the same "
                "command repeats the others"
            )
        done += 1
        if progress:
            progress(done, len(runs), run.configuration.text)
    return read_confirmed(task.spec, study, best)


def takes_fresh_seeds(task: Task) -> bool:
    """Tell whether a study has a confirmation.

    Your own objective is confirmed only if the study file has a table ``[confirm]``, since its
    training runs may be expensive, and if it takes ``seed``: otherwise all runs would be the same.
    """
    spec = task.spec
    if task.objective is None or not spec.confirm.seeds:
        return bool(spec.confirm.seeds)
    if "confirm" not in spec.model_fields_set:
        return False
    if not task.objective.asks_for("seed"):
        warnings.warn(
            f"{task.objective.path}: the objective takes no seed, so nothing is confirmed with "
            "fresh ones; add the argument seed, or set confirm.seeds = 0",
            stacklevel=2,
        )
        return False
    return True


def _worst(spec: StudySpec, study: optuna.Study) -> float:
    """Return the value of a diverged training of your own objective."""
    if spec.measured.worst is not None:
        return spec.measured.worst
    sign = spec.measured.sign
    values = [trial.value for trial in finite(own_trials(study)) if trial.value is not None]
    return min(values, key=lambda value: sign * value)


def read_confirmed(
    spec: StudySpec, study: optuna.Study, best: Sequence[Configuration]
) -> list[Confirmed]:
    """Return the confirmed functions, over the seeds that all of them have so far.

    A function is left out if all its training runs failed.
    """
    if not best:
        return []
    wanted = _wanted(spec, study, best)
    rows = _rows(spec, study, wanted)
    if not any(rows.values()):
        return []
    baselines = {str(canonical(parse(text))) for text in (REFERENCE, *spec.confirm.baselines)}
    tested = tested_runs(rows, value="test")
    against = {text: tested[text] for text in rows if text in baselines}
    searched = {configuration.text for configuration in best}
    return [
        _summarize(
            wanted[text],
            runs,
            tested=tested[text],
            against=against,
            metric=spec.measured,
            role="found" if text in searched else "baseline",
            trials=_trials_of(text, study),
        )
        for text, runs in rows.items()
    ]


def confirmed_runs(
    spec: StudySpec, study: optuna.Study, best: Sequence[Configuration]
) -> dict[str, list[dict[str, Any]]]:
    """Return the single runs of a confirmation, seed by seed.

    Returns:
        Text of each function → its runs, with ``test`` and ``validation`` values, ``status`` and
        ``seconds`` of training. All lists have the same seeds in the same order.
    """
    return _rows(spec, study, _wanted(spec, study, best))


def failed_runs(
    spec: StudySpec, study: optuna.Study, best: Sequence[Configuration]
) -> list[dict[str, Any]]:
    """Return the failed runs of a confirmation: ``activation``, ``seed`` and ``failure``."""
    saved, seeds = study.user_attrs, range(spec.confirm.seeds)
    wanted = _wanted(spec, study, best).values() if best else ()
    keys = [_attribute(function, seed) for seed in seeds for function in wanted]
    return [saved[_failed(key)] for key in keys if key not in saved and _failed(key) in saved]


def _rows(
    spec: StudySpec, study: optuna.Study, wanted: Mapping[str, Configuration]
) -> dict[str, list[dict[str, Any]]]:
    saved, seeds = study.user_attrs, range(spec.confirm.seeds)
    keys = {
        text: [_attribute(function, seed) for seed in seeds] for text, function in wanted.items()
    }

    def failed(key: str) -> bool:
        return key not in saved and _failed(key) in saved

    # A function whose training runs all failed would leave no seed in common.
    rows: dict[str, list[dict[str, Any]]] = {
        text: []
        for text, run_keys in keys.items()
        if any(key in saved for key in run_keys) or not any(map(failed, run_keys))
    }
    for seed in seeds:
        now = {text: keys[text][seed] for text in rows}
        if any(map(failed, now.values())):
            continue
        if any(key not in saved for key in now.values()):
            break
        for text, key in now.items():
            rows[text].append(saved[key])
    return rows


def _wanted(
    spec: StudySpec, study: optuna.Study, best: Sequence[Configuration]
) -> dict[str, Configuration]:
    wanted = {configuration.text: configuration for configuration in best}
    for text in (REFERENCE, *spec.confirm.baselines):
        expression = canonical(parse(text))
        wanted.setdefault(str(expression), _best_of(expression, spec, study, best[0].asked))
    return wanted


def _best_of(
    expression: Expression, spec: StudySpec, study: optuna.Study, asked: Mapping[str, Any]
) -> Configuration:
    """Return a function with the best settings it was tried with, or else the file's defaults.

    A function that was not tried gets the other parameters of your objective from the best one.
    """
    trials = _trials_of(str(expression), study)
    tried = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not tried:
        return Configuration.everywhere(expression, spec, spec.defaults, asked)
    sign = spec.measured.sign
    best = min(tried, key=lambda t: (-sign * (t.value or 0.0), t.number))
    return Configuration.of_trial(best, spec)


def _trials_of(text: str, study: optuna.Study) -> list[FrozenTrial]:
    return [trial for trial in own_trials(study) if trial.user_attrs.get("activation") == text]


def _attribute(configuration: Configuration, seed: int) -> str:
    text = configuration.text
    for settings in (configuration.settings, configuration.asked):
        text += json.dumps(dict(settings), sort_keys=True) if settings else ""
    return f"bo_act:confirmed:{hashlib.sha256(text.encode()).hexdigest()[:16]}:{seed}"


def _failed(key: str) -> str:
    """Return the attribute of a failed training; the attribute of a result takes precedence."""
    return f"{key}:failed"


def _summarize(
    configuration: Configuration,
    rows: list[dict[str, Any]],
    *,
    tested: Tested,
    against: Mapping[str, Tested],
    metric: Metric,
    role: str,
    trials: Sequence[FrozenTrial],
) -> Confirmed:
    text = configuration.text
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    searched = [trial.value for trial in averaged(trials) if trial.value is not None]
    minus = {name: tested.minus(theirs) for name, theirs in against.items() if name != text}
    return Confirmed(
        activation=text,
        settings=configuration.settings,
        tried=len(complete),
        role=role,
        seeds=len(rows),
        diverged=sum(row["status"] == "diverged" for row in rows),
        test=interval(tested.values, tested.examples, shares=metric.in_percent),
        validation=interval([row["validation"] for row in rows], shares=metric.in_percent),
        searched=max(searched, key=lambda value: metric.sign * value, default=None),
        state=state_of(trials),
        minus=minus,
        on="test" if all(row.get("of", "test") == "test" for row in rows) else "validation",
    )
