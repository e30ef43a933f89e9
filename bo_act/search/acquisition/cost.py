"""Costs of functions in a search: seconds of training, and inference cost as an objective."""

from __future__ import annotations

import math

import numpy as np
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from numpy.typing import NDArray
from scipy.stats import theilslopes
from torch import Tensor

from bo_act.search.acquisition.pool import PoolMarginals, marginals
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.specs import AcquisitionSpec
from bo_act.statistics import pareto_front

_FEWEST = 5  # timed evaluations that a line needs


def predicted_seconds(
    costs: NDArray[np.float64], indices: NDArray[np.int64], seconds: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Predict the training time of each function.

    The prediction is a line through the measured times by Theil and Sen, which a stalled machine
    does not move: a constant for all functions plus a part proportional to a function's cost.

    Args:
        costs: (N,) inference costs of all functions, in any unit.
        indices: (n,) evaluated functions.
        seconds: (n,) their times, NaN if unknown.

    Returns:
        (N,) positive seconds; None if fewer than five times are known.
    """
    if seconds is None:
        return None
    known = np.isfinite(seconds) & (seconds > 0)
    if known.sum() < _FEWEST:
        return None
    taken, of = seconds[known], costs[indices[known]]
    slope, base = 0.0, float(np.median(taken))
    if np.ptp(of) > 0:
        slope, base, *_ = theilslopes(taken, of, method="joint")
        if slope < 0:
            slope, base = 0.0, float(np.median(taken))
    # Extrapolated to cheap functions, a line may fall to zero.
    return np.maximum(base + slope * costs, float(taken.min()) / 2)


def per_second_of(spec: AcquisitionSpec, scores: Tensor, seconds: Tensor) -> Tensor:
    """Return the scores per second of training (Snoek et al. 2012, section 3.2), (m,)."""
    return scores - seconds.log() if spec.name.startswith("log_") else scores / seconds


def score_hypervolume(
    model: Surrogate,
    candidates: tuple[Tensor, Tensor],
    evaluated: tuple[Tensor, Tensor],
    *,
    least: float,
) -> Tensor:
    """Score candidates by value and logarithm of the cost, (m,).

    The Pareto front is over predicted means, because measured values are noisy.

    Args:
        model: the surrogate.
        candidates: points (m, d) and costs (m,).
        evaluated: points (n, d) and costs (n,) of evaluated and pending functions.
        least: lower end of the warped targets of interest.
    """
    (points, costs), (had, of) = candidates, evaluated
    with torch.no_grad():
        values, _ = model.mean_and_variance(had)
        return expected_hypervolume_improvement(
            marginals(model, points),
            costs.log(),
            values=values,
            of=of.log(),
            reference=(least, float(torch.cat([costs, of]).max().log())),
        )


def expected_hypervolume_improvement(
    pool: PoolMarginals,
    costs: Tensor,
    *,
    values: Tensor,
    of: Tensor,
    reference: tuple[float, float],
) -> Tensor:
    """Return the expected gain in the area that the Pareto front dominates, per candidate, (m,).

    A candidate's cost c is known; its value y is normal. The gain is the integral, over costs from
    c to the reference, of the excess of y over the best value so far at that cost. The best value
    is a step function of the cost, so the expectation is the sum over its steps of an expected
    improvement times the step's width. This is the expected hypervolume improvement of Emmerich et
    al. (2006) in two dimensions, with one of them known.

    Args:
        pool: m candidates.
        costs: (m,) logarithms of their costs.
        values: (n,) values so far.
        of: (n,) logarithms of their costs.
        reference: the least value and the largest cost of interest.
    """
    least, most = reference
    at = pareto_front(values.tolist(), (-of).tolist())[::-1]  # by cost, ascending
    steps = [(-math.inf, least)]
    steps += [(float(of[i]), float(values[i])) for i in at if values[i] > least]
    ends = [start for start, _ in steps[1:]] + [most]
    total = torch.zeros_like(costs)
    for (start, level), end in zip(steps, ends, strict=True):
        width = (min(end, most) - costs.clamp(min=start)).clamp(min=0.0)
        improvement = LogExpectedImprovement(pool, best_f=level)(pool.numbers.unsqueeze(1))
        total += width * improvement.exp()
    return total
