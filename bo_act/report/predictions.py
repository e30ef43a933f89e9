"""Predictions of the surrogate: of all functions, and of held-out evaluated ones.

N  functions      n  usable observations
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bo_act.report.loaded_study import LoadedStudy
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.observations import Observations, count_different, inverse_warp, unit
from bo_act.search.proposal import Fit
from bo_act.search.searcher import Searcher

LEVEL = 0.9
"""Of the central intervals."""
_FOLDS = 10
_LEAST = 5  # observations
_CHUNK = 16_384  # functions predicted at once

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seen:
    """The training data of a study's surrogate.

    Attributes:
        searcher: of the study.
        embedding: of its functions.
        observations: n values of configurations in the embedding.
    """

    searcher: Searcher
    embedding: Embedding
    observations: Observations

    @property
    def enough(self) -> bool:
        """Whether there is something to fit."""
        return count_different(self.observations.values) >= 2

    def fit(self, among: NDArray[Any]) -> Fit:
        """Fit the surrogate to some of the observations."""
        return self.searcher.fit(self.embedding, self.observations.among(among))


def seen(subject: LoadedStudy) -> Seen | None:
    """Return the training data of a study's surrogate; None without a sampler."""
    sampler = subject.sampler
    if sampler is None:
        return None
    view = sampler.view(subject.study)
    embedding = sampler.embedding  # after the view, which may add functions
    placed = view.observations.measured.placed(embedding)
    return Seen(view.searcher, embedding, view.observations.among(placed))


@dataclass(frozen=True, eq=False)
class Predictions:
    """The surrogate's predictions of every function.

    Attributes:
        median: (N,) in units of the objective, larger is better; NaN outside the embedding. Mapped
            to observed values, so within their range.
        deviation: (N,) of the noiseless value, in ``unit``.
        unit: ``objective``, or ``target``: the warped target, with a standard deviation of about 1.
    """

    median: Floats
    deviation: Floats
    unit: str


def predictions(subject: LoadedStudy, seen: Seen | None) -> list[Predictions]:
    """Predict every function of the space, in each place of a configuration.

    Other places and parameters are those of the best observed configuration.

    Returns:
        One per activation of the study; empty if predictions are impossible.
    """
    sampler = subject.sampler
    if sampler is None or seen is None or not seen.enough:
        return []
    fit = seen.fit(np.arange(len(seen.observations)))
    targets = seen.searcher.surrogate.targets
    scale = 1.0 if targets == "rank_normal" else unit(fit.values, targets)
    kind = "target" if targets == "rank_normal" else "objective"
    valid = np.flatnonzero(seen.embedding.valid)
    results = []
    for activation in range(len(sampler.activations)):
        mean, variance = _predict(fit, valid, activation)
        median = np.full(len(seen.embedding), np.nan)
        deviation = median.copy()
        median[valid] = inverse_warp(mean, fit.y.numpy(), fit.values)
        deviation[valid] = scale * np.sqrt(variance)
        results.append(Predictions(median, deviation, kind))
    return results


def _predict(fit: Fit, valid: NDArray[np.int64], activation: int) -> tuple[Floats, Floats]:
    best = fit.measured[[int(fit.values.argmax())]]
    means, variances = [], []
    for chunk in np.array_split(valid, 1 + len(valid) // _CHUNK):
        points = fit.space.points(best.with_functions(activation, chunk))
        mean, variance = fit.model.mean_and_variance(points)
        means.append(mean.numpy())
        variances.append(variance.numpy())
    return np.concatenate(means), np.concatenate(variances)


@dataclass(frozen=True, eq=False)
class Calibration:
    """Predictions of evaluated functions without their own values.

    Attributes:
        measured: (n,) larger is better.
        predicted, low, high: (n,) median and ends of the central interval of a measurement.
        inside: share of the measured values in their interval of ``LEVEL``.
        tau: Kendall's rank correlation of predicted and measured; None if undefined.
        folds: of the cross-validation.
    """

    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    inside: float
    tau: float | None
    folds: int


def calibration(seen: Seen | None) -> tuple[Calibration | None, str]:
    """Cross-validate a study's surrogate on its own observations.

    Each fold is predicted by a surrogate fitted to the others. Values beyond the range of those
    are clipped to it, where the warped scale ends.

    Returns:
        The result, and ``""``; or None, and the reason.
    """
    if seen is None:
        return None, "There is no surrogate."
    measured = seen.observations.values
    count = len(measured)
    if count < _LEAST:
        return None, f"At least {_LEAST} evaluated functions are needed; there are {count}."
    folds = min(_FOLDS, count)
    fold = np.random.default_rng(0).permutation(count) % folds
    mean, away, target = np.zeros((3, count))
    predicted, low, high = np.zeros((3, count))
    for number in range(folds):
        others, own = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        if count_different(measured[others]) < 2:
            return None, "The evaluated functions do not differ enough."
        fit = seen.fit(others)
        values, y = fit.values, fit.y.numpy()
        points = fit.space.points(seen.observations.measured[own])
        m, v = (part.numpy() for part in fit.model.mean_and_variance(points))
        noise = float(getattr(fit.model, "noise", 0.0))
        mean[own] = m
        away[own] = stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt(v + noise)
        known, first = np.unique(values, return_index=True)
        target[own] = np.interp(measured[own], known, y[first])
        predicted[own] = inverse_warp(mean[own], y, values)
        low[own] = inverse_warp(mean[own] - away[own], y, values)
        high[own] = inverse_warp(mean[own] + away[own], y, values)
    inside = float((np.abs(target - mean) <= away + 1e-9).mean())
    tau = float(stats.kendalltau(mean, measured).statistic)
    result = Calibration(
        measured, predicted, low, high, inside, tau if np.isfinite(tau) else None, folds
    )
    return result, ""
