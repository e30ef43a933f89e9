"""What functions cost in a search: seconds of training to be saved, and cost as an objective."""

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

_FEWEST = 5  # timed evaluations that a line is fitted to


def predicted_seconds(
    costs: NDArray[np.float64], indices: NDArray[np.int64], seconds: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    """Predict how long each function takes to train.

    A line through what was measured (Theil and Sen's, which a stalled machine does not move):
    what all functions take, and what is proportional to a function's own cost.

    Args:
        costs: (N,) of all functions at inference, in any unit.
        indices: (n,) which were evaluated.
        seconds: (n,) how long that took, NaN where it is not known.

    Returns:
        (N,) positive seconds; None as long as fewer than five are known.
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
    # Extrapolated to cheap functions, a line may lead to nothing.
    return np.maximum(base + slope * costs, float(taken.min()) / 2)


def per_second_of(spec: AcquisitionSpec, scores: Tensor, seconds: Tensor) -> Tensor:
    """Return scores as gains by second (Snoek et al. 2012, section 3.2), (m,)."""
    return scores - seconds.log() if spec.name.startswith("log_") else scores / seconds


def score_hypervolume(
    model: Surrogate,
    candidates: tuple[Tensor, Tensor],
    evaluated: tuple[Tensor, Tensor],
    *,
    least: float,
) -> Tensor:
    """Score candidates by value and logarithm of the cost, (m,).

    The front is that of the means, as measured values are noisy.

    Args:
        model: the surrogate.
        candidates: points (m, d) and costs (m,).
        evaluated: points (n, d) and costs (n,) of what was or is being evaluated.
        least: warped target below which nothing is of interest.
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
    """Return by how much each candidate is expected to enlarge the area that the front dominates.

    A candidate's cost c is known; its value y is normal. The area that it adds is the integral,
    over costs from c to the reference, of what y exceeds the best value had so far at that cost.
    That best value is a step function, so the expectation is a sum of expected improvements, one a
    step, each times the step's width: the hypervolume improvement of Emmerich et al. (2006) in two
    dimensions, one of them known.

    Args:
        pool: m candidates.
        costs: (m,) what they cost, in a unit in which differences compare (logarithms).
        values: (n,) values had so far.
        of: (n,) what they cost.
        reference: the least value and the largest cost that are of interest.
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
