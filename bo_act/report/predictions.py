"""What the surrogate says: of every function, and of evaluated ones that were kept from it.

N  functions      n  usable observations
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from bo_act.report.loaded_study import LoadedStudy
from bo_act.search.configurations import Configurations, ConfigurationSpace
from bo_act.search.observations import count_different, inverse_warp, unit, warp_targets
from bo_act.search.searcher import fit_points
from bo_act.search.surrogate.own import AnySurrogate
from bo_act.search.surrogate.surrogate import Surrogate
from bo_act.study.storage.trials import StudyView

LEVEL = 0.9
"""Of the central intervals."""
_FOLDS = 10
_LEAST = 5  # observations
_CHUNK = 16_384  # functions predicted at once

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What the surrogate of a study is fitted to.

    Attributes:
        points: (n, d).
        values: (n,) larger is better.
        blocks: columns of each block.
        pruned: (r, d).
        surrogate: which.
        seed: of the study.
        best: the best observed configuration, None where functions alone are searched.
        space: places configurations, None likewise.
    """

    points: torch.Tensor
    values: Floats
    blocks: Mapping[str, slice]
    pruned: torch.Tensor
    surrogate: AnySurrogate
    seed: int
    best: Configurations | None = None
    space: ConfigurationSpace | None = None

    @property
    def enough(self) -> bool:
        """Whether there is something to fit."""
        return count_different(self.values) >= 2


def seen(subject: LoadedStudy) -> Seen | None:
    """Read what the surrogate of a study is fitted to; None without a sampler."""
    sampler = subject.sampler
    if sampler is None:
        return None
    searcher = sampler.searcher
    side = sampler.configurations(subject.study)
    if side is None:
        told = sampler.view(subject.study).observations
        embedding = sampler.embedding  # after the view: functions are met in reading it
        usable = embedding.valid[told.indices]
        pruned = [index for index in sorted(told.pruned) if embedding.valid[index]]
        return Seen(
            torch.from_numpy(embedding.points[told.indices[usable]]),
            told.values[usable],
            embedding.blocks,
            torch.from_numpy(embedding.points[pruned]),
            searcher.surrogate,
            searcher.seed,
        )
    joint = side.view(StudyView.of(subject.study)).observations
    space = ConfigurationSpace(sampler.embedding, sampler.activations, side.searcher.parameters)
    usable = sampler.embedding.valid[joint.measured.functions].all(axis=1)
    measured, values = joint.measured[usable], joint.values[usable]
    best = measured[[int(values.argmax())]] if len(values) else None
    return Seen(
        space.points(measured),
        values,
        space.blocks,
        space.points(space.placed(joint.pruned)),
        side.searcher.surrogate,
        searcher.seed,
        best,
        space,
    )


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the surrogate expects of every function.

    Attributes:
        median: (N,) in units of the objective, larger is better; NaN where it has no place. Read
            from the observed values, and so never beyond the best or the worst of them.
        deviation: (N,) of the noiseless value, in ``unit``.
        unit: ``objective``, or ``target``: of the warped target, whose deviation is about 1.
    """

    median: Floats
    deviation: Floats
    unit: str


def predictions(subject: LoadedStudy, told: Seen | None) -> list[Predictions]:
    """Predict every function of the space, in each place that a configuration has.

    Other places and parameters are those of the best configuration observed.

    Returns:
        One for each activation of the study; nothing where nothing can be predicted.
    """
    sampler = subject.sampler
    if sampler is None or told is None or not told.enough:
        return []
    model, y = _fit(told, np.arange(len(told.values)))
    targets = told.surrogate.targets
    scale = 1.0 if targets == "rank_normal" else unit(told.values, targets)
    kind = "target" if targets == "rank_normal" else "objective"
    embedding = sampler.embedding
    valid = np.flatnonzero(embedding.valid)
    found = []
    for place in range(len(sampler.activations)):
        mean, variance = _predict(model, embedding.points, valid, told, place)
        median = np.full(len(embedding), np.nan)
        deviation = median.copy()
        median[valid] = inverse_warp(mean, y, told.values)
        deviation[valid] = scale * np.sqrt(variance)
        found.append(Predictions(median, deviation, kind))
    return found


def _predict(
    model: Surrogate, embedded: Floats, valid: NDArray[np.int64], told: Seen, place: int
) -> tuple[Floats, Floats]:
    means, variances = [], []
    for some in np.array_split(valid, 1 + len(valid) // _CHUNK):
        points = torch.from_numpy(embedded[some])
        if told.space is not None and told.best is not None:
            many = told.best[np.zeros(len(some), dtype=np.int64)]
            many.functions[:, place] = some
            points = told.space.points(many)
        mean, variance = model.mean_and_variance(points)
        means.append(mean.numpy())
        variances.append(variance.numpy())
    return np.concatenate(means), np.concatenate(variances)


def _fit(told: Seen, among: NDArray[np.int64]) -> tuple[Surrogate, Floats]:
    nothing = told.points[:0]
    with torch.no_grad():
        model, y, _ = fit_points(
            told.surrogate,
            told.points[among],
            told.values[among],
            told.blocks,
            pending=nothing,
            pruned=told.pruned if len(told.pruned) else nothing,
            seed=told.seed,
        )
    return model, y.numpy()


@dataclass(frozen=True, eq=False)
class Calibration:
    """Evaluated functions, predicted without their own value.

    Attributes:
        measured: (n,) larger is better.
        predicted, low, high: (n,) median and ends of the central interval of a measurement.
        inside: share of the measured values in their interval of ``LEVEL``.
        tau: Kendall's rank correlation of predicted and measured; None where it has none.
        folds: of the cross-validation.
    """

    measured: Floats
    predicted: Floats
    low: Floats
    high: Floats
    inside: float
    tau: float | None
    folds: int


def calibration(told: Seen | None) -> tuple[Calibration | None, str]:
    """Cross-validate a study's surrogate on its own observations.

    Each fold is predicted by a surrogate fitted to the others. A value beyond all of those counts
    as their end, where the warped scale ends.

    Returns:
        What came of it, and ``""``; or None, and why.
    """
    if told is None:
        return None, "There is no surrogate to ask."
    count = len(told.values)
    if count < _LEAST:
        return None, f"It takes {_LEAST} evaluated functions; there are {count}."
    folds = min(_FOLDS, count)
    fold = np.random.default_rng(0).permutation(count) % folds
    mean, away, target = np.zeros((3, count))
    predicted, low, high = np.zeros((3, count))
    for number in range(folds):
        others, own = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        values = told.values[others]
        if count_different(values) < 2:
            return None, "The evaluated functions do not differ enough."
        model, y = _fit(told, others)
        m, v = (part.numpy() for part in model.mean_and_variance(told.points[own]))
        noise = float(getattr(model, "noise", 0.0))
        mean[own] = m
        away[own] = stats.norm.ppf(0.5 + LEVEL / 2) * np.sqrt(v + noise)
        points, first = np.unique(values, return_index=True)
        warped = warp_targets(values, told.surrogate.targets)
        target[own] = np.interp(told.values[own], points, warped[first])
        predicted[own] = inverse_warp(mean[own], y, values)
        low[own] = inverse_warp(mean[own] - away[own], y, values)
        high[own] = inverse_warp(mean[own] + away[own], y, values)
    inside = float((np.abs(target - mean) <= away + 1e-9).mean())
    tau = float(stats.kendalltau(mean, told.values).statistic)
    found = Calibration(
        told.values, predicted, low, high, inside, tau if np.isfinite(tau) else None, folds
    )
    return found, ""
