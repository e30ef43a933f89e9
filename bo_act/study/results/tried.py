"""What a trial tried, as its attributes say it: of study files, and of loops of one's own."""

from __future__ import annotations

from typing import Any

from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial

from bo_act.activations.operators import OPERATORS
from bo_act.activations.space import EXPRESSION_SLOT, SCHEMA_SLOT
from bo_act.specs import StudySpec
from bo_act.study.sampling.points import ITEM
from bo_act.tasks.configuration import Configuration

_KINDS = ("activation", ITEM)


def places_of(trial: FrozenTrial) -> dict[str, str]:
    """Return the functions (or items) of a trial by the names of their places, ``""`` of one."""
    found: dict[str, str] = {}
    for key, value in trial.user_attrs.items():
        name, _, kind = key.rpartition(".")
        if kind in _KINDS:
            found[name] = str(value)
    named = {name: text for name, text in found.items() if name}
    return named or found


def text_of(trial: FrozenTrial) -> str:
    """Return a trial's function, or each with its name; ``""`` where it has none."""
    whole = trial.user_attrs.get("activation")
    if whole is not None:
        return str(whole)
    return ", ".join(f"{name}: {text}" if name else text for name, text in places_of(trial).items())


def settings_of(trial: FrozenTrial, spec: StudySpec | None) -> dict[str, Any]:
    """Return a trial's parameters other than those that a function is made of.

    Args:
        trial: any.
        spec: of its study's file; None of a study without.
    """
    if spec is not None:
        return dict(Configuration.of_trial(trial, spec).settings)
    return {name: value for name, value in trial.params.items() if not _is_slot(name, trial)}


def _is_slot(name: str, trial: FrozenTrial) -> bool:
    slot, choices = name.rpartition(".")[2], trial.distributions[name]
    if slot in (SCHEMA_SLOT, EXPRESSION_SLOT, ITEM):
        return True
    operators = isinstance(choices, CategoricalDistribution) and choices.choices
    return bool(operators) and all(str(one) in OPERATORS for one in operators or ())
