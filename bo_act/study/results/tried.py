"""Functions and settings of a trial from its attributes, in any study."""

from __future__ import annotations

from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from bo_act.activations.operators import OPERATORS
from bo_act.spaces.enumeration import EXPRESSION_SLOT, SCHEMA_SLOT
from bo_act.specs import StudySpec
from bo_act.study.sampling.points import ITEM
from bo_act.tasks.configuration import Configuration

_KINDS = ("activation", ITEM)


def places_of(trial: FrozenTrial) -> dict[str, str]:
    """Return a trial's functions (or items) by activation; a single one has the name ``""``."""
    texts: dict[str, str] = {}
    for key, value in trial.user_attrs.items():
        name, _, kind = key.rpartition(".")
        if kind in _KINDS:
            texts[name] = str(value)
    named = {name: text for name, text in texts.items() if name}
    return named or texts


def text_of(trial: FrozenTrial) -> str:
    """Return a trial's function, or several with their names; ``""`` without any."""
    whole = trial.user_attrs.get("activation")
    if whole is not None:
        return str(whole)
    return ", ".join(f"{name}: {text}" if name else text for name, text in places_of(trial).items())


def settings_of(trial: FrozenTrial, spec: StudySpec | None) -> dict[str, Any]:
    """Return a trial's parameters, without the slots of its functions.

    Args:
        trial: any.
        spec: the study file; None if a program made the study.
    """
    if spec is not None:
        return dict(Configuration.of_trial(trial, spec).settings)
    return {name: value for name, value in trial.params.items() if not _is_slot(name, trial)}


def _is_slot(name: str, trial: FrozenTrial) -> bool:
    slot, choices = name.rpartition(".")[2], trial.distributions[name]
    if slot in (SCHEMA_SLOT, EXPRESSION_SLOT, ITEM):
        return True
    operators = isinstance(choices, CategoricalDistribution) and choices.choices
    return bool(operators) and all(str(choice) in OPERATORS for choice in operators or ())
