"""Forecasts of gains on the next task from gains on others: means and intervals.

N  functions of a space      S  sources, tasks on which gains over one function were measured
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from bo_act.errors import SearchError
from bo_act.features.rank_pca import output_frame, place_outputs
from bo_act.features.table import Block
from bo_act.search.surrogate.gaussian_process import fit_gaussian_process

Floats = NDArray[np.float64]

LEVEL = 0.8
"""Probability of the intervals."""

FEWEST = 2
"""Sources that are needed to estimate the variance between tasks."""

_GOOD = 0.75  # values above this quantile are of interest
_SHORTLIST = 20  # best functions, for the variance between tasks
_MOST = 500  # known functions that predict unknown ones
_COMPONENTS = 6
_CHUNK = 2_048
_LEAST = 1e-12  # variance


@dataclass(frozen=True, eq=False)
class Forecast:
    """Expected gains of N functions on a task without measurements.

    Attributes:
        gain: (N,) expected; NaN if nothing is known of a function.
        low, high: (N,) ends of the interval of probability ``LEVEL``.
        chance: (N,) probability of a gain above 0.
        order: functions with a forecast, largest expected gain first.
    """

    gain: Floats
    low: Floats
    high: Floats
    chance: Floats
    order: NDArray[np.int64]


def forecast(gains: Floats, variances: Floats | None = None) -> Forecast:
    """Predict the gains on the next task, assuming that tasks come from one population.

    The expected gain is the mean over the sources. The interval is Student's t with S - 1 degrees
    of freedom. Its variance is that between sources, averaged over the best functions, times
    1 + 1/S for the error of the mean: the interval is meant for the best functions.

    Args:
        gains: (N, S) in each source, winsorized, in one unit, larger is better; NaN if unknown.
        variances: (N, S) of predicted gains; 0 for measured ones.

    Raises:
        SearchError: there are fewer than two sources.
    """
    sources = gains.shape[1]
    if sources < FEWEST:
        raise SearchError(
            f"expected gains on at least {FEWEST} tasks, got {sources}; a single task does not "
            "show how much tasks differ"
        )
    mean = gains.mean(axis=1)
    known = np.flatnonzero(np.isfinite(mean))
    order = known[np.argsort(-mean[known], kind="stable")]
    between = gains[order[:_SHORTLIST]].var(axis=1, ddof=1).mean() if len(order) else np.nan
    spread = np.full(len(mean), between * (1 + 1 / sources))
    if variances is not None:
        spread += variances.mean(axis=1)
    deviation = np.sqrt(np.maximum(spread, _LEAST))
    half = student.ppf((1 + LEVEL) / 2, sources - 1) * deviation
    chance = student.cdf(mean / deviation, sources - 1)
    return Forecast(mean, mean - half, mean + half, np.asarray(chance), order)


def winsorized(gains: Sequence[Floats]) -> list[Floats]:
    """Return the gains in each source with a lower bound, the same distance below each best one.

    The distance is the largest over the sources from the best to the upper quartile. Nobody uses a
    function that fails, by 10 points or by 80.

    Args:
        gains: (M,) for the functions of each source, in one unit; NaN if unknown.
    """
    reach = max(
        np.nanmax(source) - np.nanquantile(source, _GOOD, method="lower") for source in gains
    )
    return [np.asarray(np.maximum(source, np.nanmax(source) - reach)) for source in gains]


def predicted(
    values: Floats,
    blocks: Mapping[str, Block],
    others: Mapping[str, Block],
    rows: NDArray[np.int64],
) -> tuple[Floats, Floats]:
    """Predict values of functions from those of others with similar outputs.

    Args:
        values: (M,) of the functions of ``blocks``; NaN if unknown.
        blocks: output features of the M functions.
        others: output features of the functions to predict.
        rows: (n,) numbers of these functions, all with features.

    Returns:
        Mean and variance of the value, (n,) each.
    """
    known = np.flatnonzero(np.isfinite(values) & blocks["outputs"].present)
    frame = output_frame(blocks, known, _COMPONENTS)
    if len(known) > _MOST:  # half of them the best ones, which matter in a forecast
        order = known[np.argsort(-values[known], kind="stable")]
        best, rest = np.split(order, [_MOST // 2])
        drawn = np.random.default_rng(0).choice(rest, _MOST - len(best), replace=False)
        known = np.concatenate([best, drawn])
    x, y = place_outputs(frame, blocks, known), values[known]
    centre, unit = y.mean(), y.std() or 1.0
    model, _ = fit_gaussian_process(
        torch.from_numpy(x),
        torch.from_numpy((y - centre) / unit),
        {"outputs": slice(0, x.shape[1])},
    )
    means, variances = [], []
    for chunk in np.array_split(rows, 1 + len(rows) // _CHUNK):
        places = torch.from_numpy(place_outputs(frame, others, chunk))
        mean, variance = model.mean_and_variance(places)
        means.append(centre + unit * mean.numpy())
        variances.append(unit**2 * variance.numpy())
    return np.concatenate(means), np.concatenate(variances)
