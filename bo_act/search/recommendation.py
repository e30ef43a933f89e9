"""What gains elsewhere say of the next task: a mean and an interval for each function.

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
"""How many of the intervals are to hold."""

FEWEST = 2
"""Sources of which a difference between tasks can be told."""

_GOOD = 0.75  # quantile, above which values are of interest
_SHORTLIST = 20  # functions, the best first, whose gains tell how much tasks differ
_MOST = 500  # known functions that unknown ones are judged by
_COMPONENTS = 6
_CHUNK = 2_048
_LEAST = 1e-12  # variance


@dataclass(frozen=True, eq=False)
class Forecast:
    """What N functions are expected to gain on a task without measurements.

    Attributes:
        gain: (N,) expected; NaN of a function of which nothing is known.
        low, high: (N,) ends of the interval that holds with probability ``LEVEL``.
        chance: (N,) probability of a gain above 0.
        order: the functions with a forecast, largest expected gain first.
    """

    gain: Floats
    low: Floats
    high: Floats
    chance: Floats
    order: NDArray[np.int64]


def forecast(gains: Floats, variances: Floats | None = None) -> Forecast:
    """Predict the gains on the next task, as if tasks were drawn from one population.

    The expected gain is the mean over the sources. The interval is Student's t of S - 1 degrees of
    freedom; its variance is that between sources, on average over the best functions, times
    1 + 1/S for a mean of S. So it is meant for the best functions.

    Args:
        gains: (N, S) in each source, winsorized, in one unit, larger is better; NaN if unknown.
        variances: (N, S) of gains that were predicted themselves.

    Raises:
        SearchError: there are fewer than two sources.
    """
    sources = gains.shape[1]
    if sources < FEWEST:
        raise SearchError(
            f"expected gains on at least {FEWEST} tasks, got {sources}; one alone does not tell "
            "how much tasks differ"
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
    """Return the gains in each source, without the differences among functions that fail.

    None is farther below the best one of its source than the upper quartile is in that source
    where this is farthest: whether a function fails by 10 points or by 80, nobody uses it.

    Args:
        gains: of each source, (M,) of its functions, all in one unit; NaN if unknown.
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
        rows: (n,) which of them, all with features.

    Returns:
        Mean and variance of the value, (n,) each.
    """
    known = np.flatnonzero(np.isfinite(values) & blocks["outputs"].present)
    frame = output_frame(blocks, known, _COMPONENTS)
    if len(known) > _MOST:  # half of them the best, which a forecast is about
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
