"""The times of operators that a study goes by, measured when it is begun."""

from __future__ import annotations

import numpy as np
import optuna
import torch
from numpy.typing import NDArray

from bo_act.activations.costs import costs_of, operator_times
from bo_act.activations.space import Space

_TIMES = "operator_times"


def study_costs(study: optuna.Study, space: Space, device: torch.device) -> NDArray[np.float64]:
    """Return what each function of a space costs, (N,), by the times that the study has kept.

    They are measured once: times differ from run to run, and a study that is resumed should go on
    as it would have. Of two processes that begin at once, both take what was written last.

    Args:
        study: keeps the times in its user attributes.
        space: with a catalogue.
        device: to measure on.
    """
    if _TIMES not in study.user_attrs:
        rounded = {name: float(f"{t:.4g}") for name, t in operator_times(device).items()}
        study.set_user_attr(_TIMES, rounded)
    return costs_of(space.catalogue, study.user_attrs[_TIMES])
