"""Learning rates over a training."""

from __future__ import annotations

import math

from bo_act.specs import TrainingSpec

START_DIVISOR, END_DIVISOR = 25.0, 1e4  # of the one-cycle schedule, as in torch's OneCycleLR


def learning_rate(spec: TrainingSpec, *, step: int, steps: int) -> float:
    """Return the learning rate of a step, from 0, out of ``steps`` in the whole run.

    ``one_cycle`` is torch's OneCycleLR (cosine, two phases; Smith and Topin 2018), which divides
    by zero where the warm-up is exactly one step. ``cosine`` rises linearly, then falls to zero
    by half a cosine (Loshchilov and Hutter 2017). ``constant`` has no warm-up. A cool-down at the
    end keeps the final rate.
    """
    if spec.schedule == "constant":
        return spec.learning_rate
    steps -= round(spec.cooldown * steps)
    low = spec.learning_rate / START_DIVISOR
    end = low / END_DIVISOR if spec.schedule == "one_cycle" else 0.0
    end = end if spec.final_learning_rate is None else spec.final_learning_rate
    if step >= steps:
        return end
    if spec.schedule == "cosine":
        rising = spec.warmup * steps
        if step < rising:
            return spec.learning_rate * min(1.0, (step + 1) / rising)
        return _cosine(spec.learning_rate, end, (step - rising) / (steps - rising))
    top = spec.warmup * steps - 1
    if step <= top:
        return _cosine(low, spec.learning_rate, step / top if top > 0 else 1.0)
    return _cosine(spec.learning_rate, end, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
