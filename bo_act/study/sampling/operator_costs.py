"""Operator times of a study, measured when it begins."""

from __future__ import annotations

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from bo_act.spaces.costs import costs_of, operator_times
from bo_act.spaces.space import Space

_TIMES = "operator_times"


def study_costs(study: optuna.Study, space: Space, device: torch.device) -> NDArray[np.float64]:
    """Return the cost of each function of a space, (N,), from the times recorded in the study.

    They are measured once, since times vary, and a resumed study must continue as if undisturbed.
    If two processes begin at once, both take the times written last.

    Args:
        study: with the times in its user attributes.
        space: with a catalogue.
        device: to measure on.
    """
    if _TIMES not in study.user_attrs:
        rounded = {name: float(f"{t:.4g}") for name, t in operator_times(device).items()}
        study.set_user_attr(_TIMES, rounded)
    return costs_of(space.catalogue, study.user_attrs[_TIMES])
