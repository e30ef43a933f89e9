"""Evaluating a surrogate without a search: ranking and calibration of its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from bo_act.benchmark.table import Benchmark
from bo_act.dependencies.torch_state import plain_torch
from bo_act.errors import BenchmarkError
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.surrogate.factory import fit_points
from bo_act.specs import SurrogateSpec
from bo_act.statistics import mean_interval, rank_correlation

LEVELS = (0.5, 0.8, 0.95)
"""Of the central intervals whose coverage is counted."""


@plain_torch()
def surrogate_quality(
    benchmark: Benchmark,
    embedding: Embedding,
    surrogate: SurrogateSpec,
    *,
    observations: int = 50,
    seeds: int = 10,
    searched: Sequence[Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Fit a surrogate to some functions and let it predict all others.

    Coverage is on the surrogate's scale: a held-out value is warped by its place among the
    observed ones. Values outside the observed range are left out, because the warped scale ends
    there.

    Args:
        benchmark: truth.
        embedding: of its functions.
        surrogate: the model.
        observations: number of functions to fit.
        seeds: random choices of them.
        searched: evaluated functions in order, one sequence per search; the surrogate is fitted to
            the first ``observations`` of each instead of random ones.

    Returns:
        Means over the seeds with 95% intervals: ``tau``, Kendall's tau-b of predicted mean and
        value over all held-out functions; ``tau_top``, within the best fifth of them;
        ``coverage``, level → share of held-out values inside the central interval; and
        ``coverage_top``, the same within the best fifth.

    Raises:
        BenchmarkError: there are too few functions, or a search was shorter.
    """
    usable = np.flatnonzero(embedding.valid & benchmark.measured)
    placed = frozenset(usable.tolist())
    if len(usable) < observations + 10 or observations < 2:
        raise BenchmarkError(
            f"expected at least {observations + 10} functions with features and at least two "
            f"observations, got {len(usable)} and {observations}"
        )
    if searched is None:
        searched = [
            np.random.default_rng(seed).permutation(usable)[:observations].tolist()
            for seed in range(seeds)
        ]
    if shortest := [len(order) for order in searched if len(order) < observations]:
        raise BenchmarkError(
            f"expected searches of at least {observations} evaluations, got one of {shortest[0]}"
        )
    good = benchmark.metric.sign * benchmark.values  # larger is better
    scores: dict[str, list[float]] = {}
    for seed, order in enumerate(searched):
        seen = np.array([i for i in order[:observations] if i in placed], dtype=np.int64)
        unseen = np.setdiff1d(usable, seen)
        known, truth = good[seen], good[unseen]
        points = torch.from_numpy(embedding.points[seen])
        model, y, _ = fit_points(surrogate, points, known, embedding.blocks, seed=seed)
        mean, variance = (
            part.numpy()
            for part in model.mean_and_variance(torch.from_numpy(embedding.points[unseen]))
        )
        noise = float(getattr(model, "noise", 0.0))
        best = np.argsort(-truth, kind="stable")[: len(truth) // 5]
        scores.setdefault("tau", []).append(rank_correlation(mean, truth, kind="kendall"))
        top_tau = rank_correlation(mean[best], truth[best], kind="kendall")
        scores.setdefault("tau_top", []).append(top_tau)
        inside = (truth >= known.min()) & (truth <= known.max())
        target = _warped(known, truth[inside], y.numpy())
        distance = np.abs(target - mean[inside])
        deviation = np.sqrt(variance[inside] + noise)
        top = np.isin(np.flatnonzero(inside), best)
        for level in LEVELS:
            within = distance <= stats.norm.ppf(0.5 + level / 2) * deviation
            for name, part in (("coverage", within), ("coverage_top", within[top])):
                if part.size:
                    scores.setdefault(f"{name} {level:g}", []).append(float(part.mean()))
    summed: dict[str, Any] = {"coverage": {}, "coverage_top": {}}
    for name, values in scores.items():
        middle, ends = mean_interval(values)
        which, _, share = name.partition(" ")
        said = {"mean": middle, "ci95": ends and list(ends)}
        (summed[which] if share else summed)[share or name] = said
    return {**summed, "observations": observations, "seeds": len(searched)}


def _warped(
    known: NDArray[np.float64], values: NDArray[np.float64], targets: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Map values to warped targets, linearly between those of the known values."""
    points, first = np.unique(known, return_index=True)
    return np.asarray(np.interp(values, points, targets[first]))
