"""The other parameters of a study file: what is searched beside the function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, Trial

from bo_act.activations.expressions import Expression, canonical, parse
from bo_act.specs import ParameterSpec, StudySpec


@dataclass(frozen=True)
class Configuration:
    """A function and the settings that it is trained with.

    Attributes:
        expression: the activation function.
        settings: values of the study's other parameters, by key of the study file.
    """

    expression: Expression
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of_trial(cls, trial: FrozenTrial, spec: StudySpec) -> Configuration:
        """Return what a trial trained."""
        expression = canonical(parse(str(trial.user_attrs["activation"])))
        params = {name: trial.params[name] for name in spec.parameters if name in trial.params}
        return cls(expression, params)


def shown(settings: Mapping[str, Any]) -> str:
    """Return settings as people read them, ``""`` where there are none."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(v)}" for key, v in settings.items())


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Return the parameters of a study file as Optuna distributions."""
    return {name: _distribution(one) for name, one in spec.parameters.items()}


def suggest(trial: Trial, spec: StudySpec) -> dict[str, Any]:
    """Ask a trial for a value of each parameter of a study file."""
    values: dict[str, Any] = {}
    for name, one in distributions(spec).items():
        if isinstance(one, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, one.choices)
        elif isinstance(one, IntDistribution):
            values[name] = trial.suggest_int(name, one.low, one.high, step=one.step, log=one.log)
        elif isinstance(one, FloatDistribution):
            values[name] = trial.suggest_float(name, one.low, one.high, step=one.step, log=one.log)
    return values


def _distribution(one: ParameterSpec) -> BaseDistribution:
    if one.choices:
        return CategoricalDistribution(one.choices)
    low, high, step = one.low, one.high, one.step
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return IntDistribution(low, high, log=one.log, step=step or 1)
    return FloatDistribution(float(low or 0), float(high or 0), log=one.log, step=step)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
