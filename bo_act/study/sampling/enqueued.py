"""Enqueued trials: checked and completed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from bo_act.errors import SearchError, nearest, shortened
from bo_act.spaces.enumeration import slot_of
from bo_act.spaces.space import Space


def check_keys(
    fixed: Mapping[str, Any],
    slots: Mapping[str, Any],
    known: Collection[str],
    *,
    closed: bool,
) -> None:
    """Refuse keys of an enqueued trial that are neither a slot nor a parameter.

    An unknown key that resembles no known one passes: the objective may request it in some branch.

    Args:
        fixed: the enqueued values.
        slots: of the study's functions.
        known: parameters of trials, or named beforehand.
        closed: whether there are no others.

    Raises:
        SearchError: a key is unknown.
    """
    for key in fixed:
        if key in slots or key in known:
            continue
        if key.rpartition(".")[2] == "activation":
            value = shortened(repr(fixed[key]))
            raise SearchError(
                f"a trial was enqueued with {key} = {value}, which is not a parameter; enqueue a "
                f"function with space.enqueue(study, {value})"
            )
        name, _, slot = key.rpartition(".")
        if any(slot == known_slot.rpartition(".")[2] for known_slot in slots):
            names = sorted({known_slot.rpartition(".")[0] for known_slot in slots})
            has = ", ".join(names) or "one without a name"
            raise SearchError(
                f"a trial was enqueued with {key!r}, and the study has no activation {name!r}"
                f"{nearest(name, names)}; it has {has}"
            )
        # A misspelt slot differs little; other parameters may faintly resemble one.
        hint = nearest(key.lower(), sorted(set(slots) - set(fixed)), cutoff=0.8) or nearest(
            key, sorted(set(known) - set(fixed))
        )
        if hint or closed:
            raise SearchError(
                f"a trial was enqueued with {key!r}, which is neither a slot of the space nor a "
                f"parameter{hint or '; known: ' + ', '.join([*slots, *known])}"
            )


def completed(
    space: Space, activations: Sequence[str], fixed: Mapping[str, Any], *, seed: Sequence[int]
) -> dict[str, str]:
    """Return all slots of an enqueued trial's functions, with missing ones drawn.

    Empty if no slot was enqueued.

    Args:
        space: of the study.
        activations: names of the study's activations.
        fixed: the enqueued values.
        seed: of the random choices.

    Raises:
        SearchError: a slot's value is invalid, or slots contradict each other.
    """
    given = {
        name: {
            slot: fixed[key]
            for slot in space.distributions
            if (key := slot_of(name, slot)) in fixed
        }
        for name in activations
    }
    if not any(given.values()):
        return {}
    generator = np.random.default_rng(list(seed))
    return {
        slot_of(name, slot): value
        for name in activations
        for slot, value in space.completed(given[name], generator).items()
    }


def warn_of_unasked(trial: FrozenTrial, defaults: Collection[str]) -> None:
    """Warn of values without effect, since the objective did not request them.

    Args:
        trial: that has ended.
        defaults: names of its default values, besides the enqueued ones.
    """
    requested = trial.params.keys()
    for origin, names in (
        ("a trial was enqueued with", trial.system_attrs.get("fixed_params", {})),
        ("the sampler was given as defaults", defaults),
    ):
        if unused := [name for name in names if name not in requested]:
            warnings.warn(
                f"{origin} {', '.join(unused)}, which the objective did not request; it requested "
                f"{', '.join(requested) or 'nothing'}",
                stacklevel=3,
            )
