"""Confirmation of your own study: its best functions trained again with fresh seeds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import ArrayLike
from optuna.trial import FrozenTrial

from bo_act.activations.expressions import canonical, parse
from bo_act.activations.module import Activation
from bo_act.errors import SearchError
from bo_act.spaces.space import Space
from bo_act.specs.base import MOST_SEEDS, whole
from bo_act.statistics import shown_p
from bo_act.study.results.confirmation import FRESH
from bo_act.study.results.confirmed import KEY, Difference, interval, packed, tested_runs
from bo_act.study.results.verdict import sampled
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.trials import averaged, is_feasible, own_trials
from bo_act.training.outcomes import Diverged

Train = Callable[[Activation, int], float | ArrayLike]

_KEY = "bo_act:confirm"


@dataclass(frozen=True)
class ConfirmedFunction:
    """One function, trained with fresh seeds.

    Attributes:
        activation: its text.
        role: ``found`` by the search, or a ``baseline``.
        searched: its value in the search; None if it was not tried.
        values: one per seed, in their order; NaN if a training diverged.
        mean: of the values; NaN if one diverged.
        interval: 95% interval of the mean by Student's t; None for one seed.
        minus: difference from each baseline, paired by seed, and by example if known.
        over: the samples of the interval: ``seeds``, or ``both`` seeds and examples.
        intervals: with values per example, the intervals over ``seeds``, ``examples`` and ``both``.

    Examples:
        >>> print(ConfirmedFunction("relu(x)", "baseline", 0.9, (0.9, 0.92), 0.91, (0.78, 1.0), {}))
        relu(x) (baseline): 0.91 [0.78, 1]; 95% over seeds alone
    """

    activation: str
    role: str
    searched: float | None
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None
    minus: Mapping[str, Difference]
    over: Literal["seeds", "both"] = "seeds"
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{self.activation} ({self.role}): {_with_interval(self.mean, self.interval)}"]
        for name, gain in self.minus.items():
            shown = _with_interval(gain.mean, gain.interval, "+")
            p = "" if gain.p is None else f", p {shown_p(gain.p)}"
            parts.append(f"minus {name} {shown}{p}")
        if self.interval is not None:
            parts.append(f"95% {sampled([self, *self.minus.values()])}")
        return "; ".join(parts)


def confirm(
    study: optuna.Study,
    train: Train,
    *,
    space: Space,
    top: int = 3,
    seeds: int = 10,
    baselines: Sequence[str] = ("relu(x)",),
) -> list[ConfirmedFunction]:
    """Train a study's best functions and the baselines again, with fresh seeds.

    The best value of a search has a selection bias. So confirm your result: this trains each
    function with the same seeds, which the search did not use. It saves every result in the study,
    so that an interrupted call resumes. Set the study's other parameters yourself: ``train``
    receives only the function and the seed.

    Args:
        study: with trials of ``ActivationSampler`` or another sampler, in any storage.
        train: called with a fresh ``Activation`` and a seed, from 10,000. It returns a value like
            the study's, preferably on a test set that the search has not seen; or one value per
            example (right or wrong, squared errors), (N,), in the same order each time, with this
            mean: then intervals are over seeds and examples. ``bo_act.Diverged``, NaN or infinity
            mean that the training diverged.
        space: of the study.
        top: number of functions, the best ones.
        seeds: training runs per function.
        baselines: functions to compare with.

    Returns:
        The found functions, best of the search first, then the baselines that were not found.

    Raises:
        SearchError: the study has no value yet, or ``train`` returns no number.
        ExpressionError: a baseline is not an expression.

    Examples:
        >>> import optuna, bo_act
        >>> space = bo_act.load_space("classic")
        >>> study = optuna.create_study(direction="maximize")
        >>> study.optimize(lambda trial: len(str(space.suggest_expression(trial))), n_trials=5)
        >>> def train(activation, seed):
        ...     return len(str(activation)) + seed % 3
        >>> confirmed = bo_act.confirm(study, train, space=space, top=1, seeds=3)
        >>> [row.role for row in confirmed], len(confirmed[0].values)
        (['found', 'baseline'], 3)
    """
    whole(top, "top", low=1, error=SearchError)
    whole(seeds, "seeds", low=1, high=MOST_SEEDS, error=SearchError)
    best = _best(study, space, top)
    if not best:
        raise SearchError(
            f"the study {study.study_name!r} has no function to confirm: none has a value"
        )
    compared = [str(canonical(parse(text))) for text in baselines]
    texts = list(dict.fromkeys([*best, *compared]))
    runs: dict[str, list[dict[str, Any]]] = {text: [] for text in texts}
    for seed in range(FRESH, FRESH + seeds):
        for text in texts:
            runs[text].append(_trained(study, train, text, seed))
    return [
        _confirmed(text, best.get(text), runs, [other for other in compared if other != text])
        for text in texts
    ]


def _best(study: optuna.Study, space: Space, top: int) -> dict[str, float]:
    """Return the distinct best functions of a search with their values."""
    sign = metric_of(study).sign
    best: dict[str, float] = {}
    done = filter(is_feasible, averaged(own_trials(study)))
    for trial in sorted(done, key=lambda t: -sign * (t.value or 0.0)):
        if len(best) < top and (text := _text(trial, space)):
            best.setdefault(text, float(trial.value or 0.0))
    return best


def _text(trial: FrozenTrial, space: Space) -> str:
    text = trial.user_attrs.get("activation")
    return str(canonical(parse(text))) if text else space.activation_of(trial)


def _trained(study: optuna.Study, train: Train, text: str, seed: int) -> dict[str, Any]:
    """Return the record of a run; its ``value`` is None if it diverged."""
    key = f"{_KEY}:{hashlib.sha256(text.encode()).hexdigest()[:12]}:{seed}"
    record: dict[str, Any] | None = study.user_attrs.get(key)
    if record is None:
        try:
            value, examples = _result(train(Activation(text), seed))
        except Diverged:
            value, examples = math.nan, None
        except TypeError as error:
            raise SearchError(
                f"expected train(activation, seed) to return a number, or a number per test "
                f"example, for {text} with seed {seed}: {error}"
            ) from error
        finite = value if math.isfinite(value) else None
        record = {"activation": text, "seed": seed, "value": finite}
        record |= {} if examples is None else {KEY: examples}
        study.set_user_attr(key, record)
    return record


def _result(given: Any) -> tuple[float, dict[str, Any] | None]:
    """Return the value of a run, and its packed values per example, if any.

    Raises:
        TypeError: ``given`` is something else.
    """
    if hasattr(given, "detach"):  # a tensor, on any device, of any type
        given = given.detach().cpu()
        given = (given.double() if given.is_floating_point() else given).numpy()
    values = np.asarray(given)
    if values.dtype.kind not in "bif" or values.ndim > 1 or not values.size:
        raise TypeError(f"got {given!r:.60}")
    if not values.ndim:
        return float(values), None
    return float(values.mean(dtype=np.float64)), packed(values)


def _confirmed(
    text: str,
    searched: float | None,
    runs: Mapping[str, list[dict[str, Any]]],
    baselines: Sequence[str],
) -> ConfirmedFunction:
    role = "baseline" if searched is None else "found"
    steady = {
        name: rows for name, rows in runs.items() if all(run["value"] is not None for run in rows)
    }
    values = tuple(math.nan if run["value"] is None else float(run["value"]) for run in runs[text])
    if text not in steady:
        return ConfirmedFunction(text, role, searched, values, math.nan, None, {})
    tested = tested_runs(steady, value="value")
    mine = tested[text]
    mean = interval(mine.values, mine.examples)
    minus = {name: mine.minus(tested[name]) for name in baselines if name in tested}
    return ConfirmedFunction(
        text,
        role,
        searched,
        values,
        mean.mean,
        mean.interval,
        minus,
        mean.over,
        mean.intervals,
    )


def _with_interval(mean: float, interval: tuple[float, float] | None, sign: str = "") -> str:
    shown = f"{mean:{sign}.4g}"
    if interval is not None:
        shown += f" [{interval[0]:{sign}.4g}, {interval[1]:{sign}.4g}]"
    return shown
