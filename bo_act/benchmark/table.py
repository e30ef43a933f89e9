"""Benchmark: measured values of every function of a space on one task.

N  functions of the catalogue      S  runs of each function, with different seeds
E  epochs of a run
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bo_act.errors import BenchmarkError
from bo_act.features.table import FeatureTable
from bo_act.metrics import ACCURACY, Metric
from bo_act.spaces.space import Space
from bo_act.statistics import tied

MEASURED = (
    "train_value",
    "validation_value",
    "test_value",
    "train_loss",
    "validation_loss",
    "test_loss",
    "seconds",
)
"""What is known of a run: values of the metric, losses (nats), wall time in seconds."""


PART = "part"
"""Set in the provenance of a benchmark that was built of a part of its space, or of its runs."""


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Measured values of the N functions of a catalogue.

    Attributes:
        name: of the benchmark.
        space: its catalogue indexes the rows.
        runs: each of ``MEASURED`` → (N, S) float64; NaN for missing runs, and for the losses of
            diverged runs.
        diverged: (N, S) bool: runs with NaN or infinite loss; their values are at chance.
        chance: value of a network that learns nothing; NaN if unknown.
        features: of each function.
        curves: (N, S, E) float32 value on validation data after each epoch, NaN after the end of a
            run; None without curves.
        provenance: origin of the benchmark, as JSON values.
        unmatched: expressions of the file without a function in the space.
        metric: of the values.

    Examples:
        >>> import bo_act
        >>> benchmark = bo_act.open_benchmark("digits_mlp")
        >>> benchmark.values.shape == (len(benchmark.space.catalogue),)
        True
    """

    name: str
    space: Space
    runs: Mapping[str, NDArray[np.float64]] = field(repr=False)
    diverged: NDArray[np.bool_] = field(repr=False)
    chance: float
    features: FeatureTable = field(repr=False)
    curves: NDArray[np.float32] | None = field(default=None, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    unmatched: tuple[str, ...] = field(default=(), repr=False)
    metric: Metric = ACCURACY

    def __post_init__(self) -> None:
        shape = self.diverged.shape
        expected = (len(self.space.catalogue), shape[-1])
        shapes = {name: values.shape for name, values in self.runs.items()}
        if set(shapes) != set(MEASURED) or shape != expected or set(shapes.values()) != {shape}:
            raise BenchmarkError(
                f"expected {', '.join(MEASURED)} as arrays (N, S) of "
                f"N = {expected[0]} functions, got {shapes} and diverged {shape}"
            )
        if self.curves is not None and self.curves.shape[:2] != shape:
            raise BenchmarkError(
                f"expected curves (N, S, E) with (N, S) = {shape}, got {self.curves.shape}"
            )
        if self.features.catalogue_hash != self.space.catalogue.hash:
            raise BenchmarkError("the features and the values belong to different catalogues")
        if not self.measured.any():
            raise BenchmarkError(f"benchmark {self.name!r} has no measured function")

    def __len__(self) -> int:
        return len(self.diverged)

    @property
    def seeds(self) -> int:
        """S, the runs of each function."""
        return int(self.diverged.shape[1])

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """(N,) bool: functions with at least one run."""
        return np.asarray(np.isfinite(self.runs["validation_value"]).any(axis=1))

    @property
    def is_part(self) -> bool:
        """Whether functions without a run were not built yet."""
        return bool(self.provenance.get(PART)) and not bool(self.measured.all())

    def of_runs(self, chosen: Sequence[int]) -> Benchmark:
        """Return the benchmark with only some of its S runs.

        A function with none of these keeps its first other run: if only the best functions were
        repeated, a search would else know which they are.
        """
        columns = list(chosen)
        measured = np.isfinite(self.runs["validation_value"])
        taken = np.tile(columns, (len(self), 1))
        lost = ~measured[:, columns].any(axis=1)
        taken[lost, 0] = measured[lost].argmax(axis=1)
        rows = np.arange(len(self))[:, None]
        return replace(
            self,
            runs={metric: values[rows, taken] for metric, values in self.runs.items()},
            diverged=self.diverged[rows, taken],
            curves=None if self.curves is None else self.curves[rows, taken],
        )

    @cached_property
    def hash(self) -> str:
        """Identify the benchmark by its functions, their runs, curves and features."""
        digest = hashlib.sha256(self.features.hash.encode())
        for name in MEASURED:
            digest.update(np.ascontiguousarray(self.runs[name]).data)
        if self.metric != ACCURACY:
            digest.update(str(self.metric).encode())
        if self.curves is not None:
            digest.update(np.ascontiguousarray(self.curves).data)
        return digest.hexdigest()

    def mean(self, name: str) -> NDArray[np.float64]:
        """Return the mean over the runs of each function, (N,); NaN without any.

        Args:
            name: one of ``MEASURED``.
        """
        return _mean(self.runs[name])

    @cached_property
    def values(self) -> NDArray[np.float64]:
        """(N,) mean validation value, which searches observe."""
        return self.mean("validation_value")

    @cached_property
    def test(self) -> NDArray[np.float64]:
        """(N,) mean test value, hidden from searches."""
        return self.mean("test_value")

    @cached_property
    def deviations(self) -> NDArray[np.float64]:
        """(N,) standard deviation of the validation values between runs; NaN for one run."""
        runs = self.runs["validation_value"]
        measured = np.isfinite(runs)
        count = measured.sum(axis=1)
        squares = np.where(measured, (runs - self.values[:, None]) ** 2, 0.0).sum(axis=1)
        return np.where(count > 1, np.sqrt(squares / np.maximum(count - 1, 1)), np.nan)

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """(N,) 1 is the best by ``values``, ties share the better rank; 0 if not measured.

        Means that differ by rounding are ties.
        """
        values = tied(self.metric.sign * self.values[self.measured])
        ranks = np.zeros(len(self), dtype=np.int64)
        ranks[self.measured] = 1 + np.searchsorted(np.sort(-values), -values)
        return ranks

    @cached_property
    def best(self) -> int:
        """Index of the function with the best value."""
        return int(np.nanargmax(self.metric.sign * self.values))

    @property
    def least(self) -> float:
        """Value of an unmeasured function: chance level, else the worst value.

        Never better than the best function: all may be worse than chance.
        """
        sign = self.metric.sign
        values = sign * self.values[self.measured]
        known = np.isfinite(self.chance)
        return float(sign * min(sign * self.chance, values.max()) if known else sign * values.min())

    @cached_property
    def expectation(self) -> float:
        """Mean value of a random measured function.

        Errors have no bound, and one of 1e38 would decide alone: worse values than of learning
        nothing count as that, unless all are worse. Shares have a bound.
        """
        values = self.metric.sign * self.values[self.measured]
        guess = self.metric.sign * self.chance
        if not self.metric.in_percent and guess < values.max():
            values = np.maximum(values, guess)
        return float(self.metric.sign * values.mean())


def _mean(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    measured = np.isfinite(runs)
    count = measured.sum(axis=1)
    total = np.where(measured, runs, 0.0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
