"""Confirmation: the best functions trained anew with fresh seeds, and the test set read.

The search selects on validation accuracy, of one seed a function, so its best value is partly
luck. What is claimed is therefore measured again: each of the best functions and each baseline
with the same fresh seeds, on the test set, with intervals. Where other parameters are searched as
well, each is trained with the best settings that the search saw for it. Results are kept in the
study, seed by seed, so that an interrupted confirmation goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy import stats

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.specs import StudySpec
from bo_act.study.settings import Configuration
from bo_act.study.task import Task
from bo_act.study.trials import is_own
from bo_act.training.images import Images
from bo_act.training.trainer import EVALUATION_BATCH, evaluate, pick_device

FRESH = 10_000
"""Added to a study's seed for the first confirmation seed; the search uses the seed itself."""

REFERENCE = "relu(x)"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval (Student's t over the seeds)."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Confirmed:
    """One function, trained with fresh seeds.

    Attributes:
        activation: its text.
        settings: values of the study's other parameters.
        tried: settings that the search tried it with.
        role: ``found`` by the search or a ``baseline``.
        seeds: how many were trained.
        diverged: how many of them diverged; they count with chance-level accuracy.
        test, validation: accuracy, a fraction.
        minus_relu: test accuracy minus that of ReLU, paired by seed.
    """

    activation: str
    settings: Mapping[str, Any]
    tried: int
    role: str
    seeds: int
    diverged: int
    test: Interval
    validation: Interval
    minus_relu: Interval | None

    def as_json(self) -> dict[str, Any]:
        """Return what ``bo-act run --json`` prints."""
        return asdict(self)


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of n values and the 95% interval of the mean; none for n = 1."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Interval(mean, None, None)
    half = float(stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))
    return Interval(mean, mean - half, mean + half)


def confirm(
    task: Task,
    study: optuna.Study,
    found: Sequence[Configuration],
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Confirmed]:
    """Train the found functions and the baselines with fresh seeds and read the test set.

    Args:
        task: what to train on.
        study: keeps the results; those it has are not measured again.
        found: the best functions of the search, best first.
        progress: called with (runs done, runs in all, the function that is next).

    Returns:
        The found functions in their order, then the baselines.
    """
    wanted = _wanted(task.spec, study, found)
    runs = [(text, seed) for seed in range(task.spec.confirm.seeds) for text in wanted]
    kept = study.user_attrs
    test: Images | None = None
    for done, (text, seed) in enumerate(runs):
        if progress:
            progress(done, len(runs), text)
        if _attribute(wanted[text], seed) not in kept:
            test = test or task.data.load_test()
            row = _measure(task, wanted[text], test, seed=task.spec.seed + FRESH + seed)
            kept_as = _attribute(wanted[text], seed)
            study.set_user_attr(kept_as, {"activation": text, "seed": seed, **row})
    if progress and runs:
        progress(len(runs), len(runs), "")
    return read_confirmed(task.spec, study, found)


def read_confirmed(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> list[Confirmed]:
    """Return what has been confirmed, over the seeds that every function has by now."""
    kept = study.user_attrs
    wanted = _wanted(spec, study, found)
    rows: dict[str, list[dict[str, Any]]] = {text: [] for text in wanted}
    for seed in range(spec.confirm.seeds):
        measured = {text: kept.get(_attribute(wanted[text], seed)) for text in rows}
        if any(row is None for row in measured.values()):
            break
        for text, row in measured.items():
            rows[text].append(row or {})
    if not rows[REFERENCE]:
        return []
    reference = [row["test"] for row in rows[REFERENCE]]
    return [
        _summarize(
            one,
            rows[text],
            reference,
            "found" if place < len(found) else "baseline",
            len(_trials_of(text, study)),
        )
        for place, (text, one) in enumerate(wanted.items())
    ]


def _wanted(
    spec: StudySpec, study: optuna.Study, found: Sequence[Configuration]
) -> dict[str, Configuration]:
    wanted = {one.text: one for one in found}
    for text in (REFERENCE, *spec.confirm.baselines):
        expression = canonical(parse(text))
        wanted.setdefault(str(expression), _best_of(expression, spec, study))
    return wanted


def _best_of(expression: Expression, spec: StudySpec, study: optuna.Study) -> Configuration:
    """Return a function with the best settings it was tried with, else those of the file."""
    tried = _trials_of(str(expression), study)
    if not tried:
        return Configuration.everywhere(expression, spec, spec.defaults)
    return Configuration.of_trial(min(tried, key=lambda t: (-(t.value or 0.0), t.number)), spec)


def _trials_of(text: str, study: optuna.Study) -> list[FrozenTrial]:
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if trial.user_attrs.get("activation") == text and is_own(trial)
    ]


def _attribute(one: Configuration, seed: int) -> str:
    text = one.text
    if one.settings:
        text += json.dumps(one.settings, sort_keys=True)
    return f"bo_act:confirmed:{hashlib.sha256(text.encode()).hexdigest()[:16]}:{seed}"


def _measure(task: Task, one: Configuration, test: Images, *, seed: int) -> dict[str, Any]:
    network, result = task.train(one.trained, seed=seed, settings=one.settings)
    spec = task.spec.training
    accuracy = 1 / task.data.num_classes
    if result.status == "completed":
        accuracy = evaluate(
            network,
            test,
            batch_size=EVALUATION_BATCH,
            device=pick_device(spec.device),
            precision=spec.precision,
        )
    return {
        "test": accuracy,
        "validation": result.validation_accuracy,
        "status": result.status,
        "seconds": round(result.seconds, 3),
    }


def _summarize(
    one: Configuration, rows: list[dict[str, Any]], reference: list[float], role: str, tried: int
) -> Confirmed:
    test = [row["test"] for row in rows]
    difference = None
    if one.text != REFERENCE:
        difference = interval([a - b for a, b in zip(test, reference, strict=True)])
    return Confirmed(
        activation=one.text,
        settings=one.settings,
        tried=tried,
        role=role,
        seeds=len(rows),
        diverged=sum(row["status"] == "diverged" for row in rows),
        test=interval(test),
        validation=interval([row["validation"] for row in rows]),
        minus_relu=difference,
    )
