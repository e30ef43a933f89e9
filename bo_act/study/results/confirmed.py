"""Confirmed values: means and differences over seeds and test examples, with intervals.

The values per test example of a training are packed to fit into the study. Their mean is the
metric. Right and wrong take a bit per example; other values are float32. Large test sets are
reduced to means of random groups, whose spread gives the same standard error.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bo_act import statistics
from bo_act.metrics import Metric
from bo_act.tasks.configuration import REFERENCE

Floats = NDArray[np.float64]

_MOST = 4_096  # numbers per training: 22 kB of text

KEY = "examples"
"""Key of the packed values in a run's record."""


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% interval by Student's t.

    Attributes:
        mean: over the seeds and the test examples.
        low, high: ends of the interval; None for one seed.
        over: the samples of the interval: ``seeds``, or ``both`` seeds and test examples,
            whichever interval is wider.
        intervals: ends of the intervals over ``seeds``, ``examples`` and ``both``; empty without
            values per example.
    """

    mean: float
    low: float | None
    high: float | None
    over: Literal["seeds", "both"] = "seeds"
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends."""
        return None if self.low is None or self.high is None else (self.low, self.high)


@dataclass(frozen=True)
class Difference(Interval):
    """The mean of differences paired by seed, and by test example.

    Attributes:
        p: of the interval's two-sided t-test, not adjusted: the probability of a difference at
            least as large if the true one is zero, over other seeds (and test examples, see
            ``over``). None if all differences are equal, up to rounding.
        p_values: the same over ``seeds``, ``examples`` and ``both``.
    """

    p: float | None = None
    p_values: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Confirmed:
    """One function, trained with fresh seeds.

    Attributes:
        activation: its text.
        settings: values of the study's other parameters.
        tried: number of settings that the search tried with it.
        role: ``found`` by the search, or a ``baseline``.
        seeds: number of training runs.
        diverged: how many diverged; they count as networks that learn nothing.
        test, validation: values of the metric; an accuracy is a fraction.
        on: ``test``; or ``validation``, if your objective returns no test value.
        searched: its best value in the search, of one seed (or the mean of repeated trials), or
            None.
        state: its state in the search: ``complete``, ``diverged``, ``pruned``, ``failed`` or
            ``running``; empty if it was not tried.
        minus: text of each baseline → test value minus the baseline's, paired by seed and example.
    """

    activation: str
    settings: Mapping[str, Any]
    tried: int
    role: str
    seeds: int
    diverged: int
    test: Interval
    validation: Interval
    searched: float | None = None
    state: str = ""
    minus: Mapping[str, Difference] = field(default_factory=dict)
    on: Literal["test", "validation"] = "test"

    @property
    def data(self) -> str:
        """The data of the confirmation, for people."""
        return "the test set" if self.on == "test" else "validation data"

    def of(self, metric: Metric) -> str:
        """Return the name of the confirmed metric, for people."""
        return f"{self.on} {metric.name}"

    @property
    def minus_relu(self) -> Difference | None:
        """Test value minus ReLU's, paired; None for ReLU itself."""
        return self.minus.get(REFERENCE)

    @property
    def shrinkage(self) -> float | None:
        """The search's value minus the mean over fresh seeds."""
        return None if self.searched is None else self.searched - self.validation.mean

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``bo-act run --json``."""
        row = asdict(self)
        return row | {"minus_relu": row["minus"].get(REFERENCE), "shrinkage": self.shrinkage}


def paired(
    a: Sequence[float], b: Sequence[float], examples: tuple[Floats, Floats] | None = None
) -> Difference:
    """Return the mean of a - b over n seeds, its 95% interval and the p of the t-test.

    Args:
        a: mean of each seed.
        b: mean of each seed, of the other function.
        examples: (n, N) values by seed and test example, with these means.
    """
    seeds = statistics.paired(a, b)
    if examples is None:
        low, high = seeds.interval or (None, None)
        return Difference(seeds.mean, low, high, p=seeds.p)
    crossed = statistics.crossed(*examples)
    widest = crossed.both if crossed.wider == "both" else seeds
    low, high = widest.interval or (None, None)
    parts = {"seeds": seeds, "examples": crossed.examples, "both": crossed.both}
    return Difference(
        seeds.mean,
        low,
        high,
        crossed.wider,
        {name: part.interval for name, part in parts.items()},
        widest.p,
        {name: part.p for name, part in parts.items()},
    )


def interval(
    values: Sequence[float], examples: Floats | None = None, *, shares: bool = False
) -> Interval:
    """Return the mean of n values and the 95% interval of the mean; none for n = 1.

    Args:
        values: mean of each seed.
        examples: (n, N) values by seed and test example, with these means.
        shares: whether values are shares, as accuracies are: no interval leaves [0, 1].
    """

    def inside(ends: tuple[float, float] | None) -> tuple[float, float] | None:
        if ends is None or not (shares and min(values) >= 0 and max(values) <= 1):
            return ends
        return max(0.0, ends[0]), min(1.0, ends[1])

    mean, ends = statistics.mean_interval(values)
    if examples is None:
        low, high = inside(ends) or (None, None)
        return Interval(mean, low, high)
    crossed = statistics.crossed(examples)
    parts = {
        "seeds": ends,
        "examples": crossed.examples.interval,
        "both": crossed.both.interval,
    }
    intervals = {name: inside(part) for name, part in parts.items()}
    low, high = intervals[crossed.wider] or (None, None)
    return Interval(mean, low, high, crossed.wider, intervals)


@dataclass(frozen=True, eq=False)
class Tested:
    """The test results of a function's n runs, and if known the (n, N) values per example."""

    values: list[float]
    examples: Floats | None

    def minus(self, other: Tested) -> Difference:
        """Return the difference, paired by seed, and by example if both have values per example."""
        if self.examples is None or other.examples is None:
            return paired(self.values, other.values)
        return paired(self.values, other.values, (self.examples, other.examples))


def tested_runs(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], *, value: str
) -> dict[str, Tested]:
    """Return the test results of each function, with values per example if all runs have them.

    Args:
        rows: records of the runs of each function.
        value: the key of a run's result.
    """
    counts = (run[KEY]["count"] for runs in rows.values() for run in runs if run.get(KEY))
    count = next(counts, 0)
    tested = {}
    for text, runs in rows.items():
        values = [run[value] for run in runs]
        tested[text] = Tested(values, values_per_example(runs, values, count))
    return tested


# --- values per example ---------------------------------------------------------------------


def packed(values: NDArray[Any]) -> dict[str, Any] | None:
    """Pack (N,) values of examples, bool or numbers, for JSON.

    Returns:
        The packed values; None if there are fewer than two, or one is not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    if values.dtype == bool:
        return {"bits": _base64(np.packbits(values)), "count": len(values)}
    grouped = _grouped(values.astype(np.float64))
    with np.errstate(over="ignore"):
        small = grouped.astype("<f4")
    return {"float32": _base64(small), "count": len(grouped)} if np.isfinite(small).all() else None


def unpacked(content: Mapping[str, Any]) -> Floats:
    """Return the (N,) values given to ``packed``, or the means of its groups."""
    if "bits" in content:
        bits = np.frombuffer(base64.b64decode(content["bits"]), dtype=np.uint8)
        return np.unpackbits(bits, count=content["count"]).astype(np.float64)
    return np.frombuffer(base64.b64decode(content["float32"]), dtype="<f4").astype(np.float64)


def values_per_example(
    runs: Sequence[Mapping[str, Any]], values: Sequence[float], count: int
) -> Floats | None:
    """Return the values per example of S runs, (S, N); None if a run has none.

    Args:
        runs: records; a diverged run has the same value for every example.
        values: means of the S runs.
        count: N.
    """
    rows = []
    for run, value in zip(runs, values, strict=True):
        known = run.get(KEY)
        if known is None and run.get("status") == "diverged":
            rows.append(np.full(count, value))
        elif known is None or known["count"] != count:
            return None
        else:
            rows.append(unpacked(known))
    return np.stack(rows) if rows and count else None


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(values.tobytes()).decode("ascii")


def _grouped(values: Floats) -> Floats:
    if len(values) <= _MOST:
        return values
    # Random, since neighbours in a file are often alike; the same groups in every training.
    order = np.random.default_rng(0).permutation(len(values))
    size = -(-len(values) // _MOST)
    means = np.array([part.mean() for part in np.array_split(values[order], len(values) // size)])
    # Correct the mean, since some groups have one example more.
    return np.asarray(means + (values.mean() - means.mean()))
