"""Configurations: the functions and parameters that a trial trains."""

from __future__ import annotations

import re
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
from bo_act.errors import StorageError
from bo_act.spaces.enumeration import slot_of
from bo_act.spaces.space import Space
from bo_act.specs import ParameterSpec, StudySpec

REFERENCE = "relu(x)"
"""What functions are measured by."""


@dataclass(frozen=True)
class Configuration:
    """A function, or one for each activation of the study, and the settings of its training.

    Attributes:
        functions: by name of the activation; ``""`` if there is only one.
        settings: values of the study's other parameters, by key of the study file.
        asked: all parameters of a trial, which your own objective may request again.
    """

    functions: Mapping[str, Expression]
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The function as text if there is one for all places, else each with its name."""
        texts = {name: str(function) for name, function in self.functions.items()}
        if len(set(texts.values())) == 1:
            return next(iter(texts.values()))
        return ", ".join(f"{name}: {text}" for name, text in texts.items())

    @property
    def trained(self) -> Expression | Mapping[str, Expression]:
        """The argument of ``Task.train``."""
        return self.functions.get("", self.functions)

    @classmethod
    def everywhere(
        cls,
        expression: Expression,
        spec: StudySpec,
        settings: Mapping[str, Any],
        asked: Mapping[str, Any] | None = None,
    ) -> Configuration:
        """Return the same function in all places of a study."""
        return cls(dict.fromkeys(places(spec), expression), settings, asked or {})

    @classmethod
    def suggest(cls, trial: Trial, space: Space, spec: StudySpec) -> Configuration:
        """Ask a trial for its functions and settings, and record the functions' texts in it."""
        functions = {name: space.suggest_expression(trial, name) for name in places(spec)}
        configuration = cls(functions, suggest(trial, spec))
        if "" not in functions:
            trial.set_user_attr("activation", configuration.text)
        return configuration

    @classmethod
    def of_trial(cls, trial: FrozenTrial, spec: StudySpec) -> Configuration:
        """Return the configuration of a trial."""
        attributes = {name: slot_of(name, "activation") for name in places(spec)}
        lacking = [name for name in attributes.values() if name not in trial.user_attrs]
        if lacking:
            raise StorageError(
                f"trial {trial.number} has no {lacking[0]!r} among its attributes: another "
                f"program made the study {spec.name!r}, or its storage is damaged"
            )
        texts = {name: str(trial.user_attrs[key]) for name, key in attributes.items()}
        functions = {name: canonical(parse(text)) for name, text in texts.items()}
        params = {name: trial.params[name] for name in spec.parameters if name in trial.params}
        return cls(functions, params, trial.params if spec.objective else {})


def functions_of(text: str) -> dict[str, str]:
    """Return the functions in the text of a configuration, by name of the activation."""
    parts = re.split(r", (?=[\w.-]+: )", text)
    named = [part.partition(": ") for part in parts]
    return {name: function for name, _, function in named if function} or {"": text}


def places(spec: StudySpec) -> tuple[str, ...]:
    """Return the names of a study's activations; ``""`` if there is only one."""
    return spec.activations or ("",)


def shown(settings: Mapping[str, Any]) -> str:
    """Return settings as text, ``""`` if there are none."""
    return ", ".join(f"{key.rpartition('.')[2]} {_short(v)}" for key, v in settings.items())


def distributions(spec: StudySpec) -> dict[str, BaseDistribution]:
    """Return the parameters of a study file as Optuna distributions."""
    return {name: _distribution(parameter) for name, parameter in spec.parameters.items()}


def suggest(trial: Trial, spec: StudySpec) -> dict[str, Any]:
    """Ask a trial for a value of each parameter of a study file."""
    values: dict[str, Any] = {}
    for name, d in distributions(spec).items():
        if isinstance(d, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, d.choices)
        elif isinstance(d, IntDistribution):
            values[name] = trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
        elif isinstance(d, FloatDistribution):
            values[name] = trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
    return values


def _distribution(parameter: ParameterSpec) -> BaseDistribution:
    if parameter.choices:
        return CategoricalDistribution(parameter.choices)
    low, high, step = parameter.low, parameter.high, parameter.step
    if isinstance(low, int) and isinstance(high, int) and (step is None or isinstance(step, int)):
        return IntDistribution(low, high, log=parameter.log, step=step or 1)
    return FloatDistribution(float(low or 0), float(high or 0), log=parameter.log, step=step)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
