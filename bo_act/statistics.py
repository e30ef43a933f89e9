"""Statistics of several measurements, safe for numbers of any size, and up to rounding.

Differences within the rounding error of the compared values count as zero: their spread is no
evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Floats = NDArray[np.float64]

ROUNDING = 4 * float(np.finfo(np.float32).eps)
"""Share of two measured values by which they may differ and be equal: some went through float32."""

FLOAT64_ROUNDING = 16 * float(np.finfo(np.float64).eps)
"""The same of values that are in float64 from the start."""


@dataclass(frozen=True)
class Paired:
    """Statistics of n paired differences.

    Attributes:
        mean: of the differences.
        interval: 95% interval of the mean by Student's t; None for n = 1.
        p: of the paired t-test, two-sided; None if the differences have no spread.
    """

    mean: float
    interval: tuple[float, float] | None
    p: float | None


def rescaled(values: Floats) -> tuple[Floats, int]:
    """Return values times a power of two, the largest of them between 1/2 and 1, and the exponent.

    Exact, except for values 10^300 times smaller than the largest; squares and differences of the
    result stay within float64. ``np.ldexp`` with the exponent undoes it.
    """
    largest = float(np.abs(values).max(initial=0.0))
    exponent = math.frexp(largest)[1]
    return np.ldexp(values, -exponent), exponent


def deviation(values: Floats, *, ddof: int = 0) -> float:
    """Return the standard deviation of values of any size."""
    values, exponent = rescaled(values)
    centred, more = rescaled(values - values.mean())
    square = float(np.square(centred).sum()) / (len(values) - ddof)
    return float(np.ldexp(math.sqrt(square), exponent + more))


def tied(values: Floats, rounding: float = ROUNDING) -> Floats:
    """Make values equal that are equal up to rounding, each the least of its group.

    Args:
        values: (n,) finite.
        rounding: relative difference up to which values are equal.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    start = 0
    while start < len(ordered):
        least = ordered[start]
        reach = least + rounding * abs(least)
        end = int(np.searchsorted(ordered, reach, side="right"))
        ordered[start:end] = least
        start = end
    levelled = np.empty_like(values)
    levelled[order] = ordered
    return levelled


def negligible(difference: ArrayLike, *compared: ArrayLike) -> NDArray[np.bool_]:
    """Tell whether differences are within the rounding of the largest compared value."""
    size = max(float(np.abs(values).max(initial=0.0)) for values in map(np.asarray, compared))
    return np.asarray(np.abs(difference) <= ROUNDING * size)


def mean_interval(values: Sequence[float] | Floats) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of n values and its 95% interval by Student's t; None for n = 1."""
    sample, exponent = rescaled(np.asarray(values, dtype=np.float64))
    mean, half = sample.mean(), 0.0
    if not negligible(np.ptp(sample), sample):
        spread = deviation(sample, ddof=1) / math.sqrt(len(sample))
        half = float(stats.t.ppf(0.975, len(sample) - 1)) * spread
    middle, low, high = np.ldexp([mean, mean - half, mean + half], exponent).tolist()
    return middle, (low, high) if len(sample) > 1 else None


def paired(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> Paired:
    """Return the statistics of the differences a - b of n pairs."""
    (first, second), exponent = rescaled(np.array([a, b], dtype=np.float64))
    differences = first - second
    differences[negligible(differences, first, second)] = 0.0
    if negligible(np.ptp(differences), first, second):
        mean = float(np.ldexp(differences.mean(), exponent))
        return Paired(mean, (mean, mean) if len(first) > 1 else None, None)
    p = float(stats.ttest_1samp(differences, 0.0).pvalue)
    middle, interval = mean_interval(np.ldexp(differences, exponent))
    return Paired(middle, interval, p)


@dataclass(frozen=True)
class Crossed:
    """Intervals of the mean of a table of S trainings and N examples.

    Attributes:
        seeds: over further seeds, for the same examples.
        examples: over further examples, for the same trainings.
        both: over further seeds and further examples.
    """

    seeds: Paired
    examples: Paired
    both: Paired

    @property
    def wider(self) -> Literal["seeds", "both"]:
        """The wider one of the two intervals over seeds; ``seeds`` if they are equal."""
        if self.seeds.interval is None or self.both.interval is None:
            return "seeds"
        seeds, both = (high - low for low, high in (self.seeds.interval, self.both.interval))
        return "seeds" if seeds > both else "both"


def crossed(table: Floats, minus: Floats | None = None) -> Crossed:
    """Return 95% intervals of the mean of a table whose rows and columns are both samples.

    An entry is mean + seed + example + rest, all but the mean random and independent (crossed
    random effects), so the mean's variance is σ²(seed)/S + σ²(example)/N + σ²(rest)/SN. Row means
    alone estimate the first and the third, column means the second and the third, and the mean
    square of the residuals the third (Cornfield and Tukey 1956); so the first plus the second
    minus the third has no bias. Student's t with the degrees of freedom of that sum (Satterthwaite
    1946), no fewer than those of the smaller sample. The pigeonhole bootstrap (Owen 2007) counts
    the third three times, and is too narrow for few seeds; coverage of both in
    ``tests/benchmarks/intervals.py``. Entries of 0 and 1 without any spread (all examples right, or
    no difference) say only that other examples are rare: at most the share by the exact binomial of
    none among N.

    Args:
        table: (S, N), of each training and each example.
        minus: (S, N), to subtract; differences within rounding count as zero.

    Examples:
        >>> right = np.array([[1.0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1]])
        >>> variation = crossed(right)
        >>> round(variation.both.mean, 3), variation.wider
        (0.667, 'both')
    """
    values = np.asarray(table, dtype=np.float64)
    of_shares = all(np.isin(one, (0, 1)).all() for one in (values, minus) if one is not None)
    if minus is not None:
        compared = values, np.asarray(minus, dtype=np.float64)
        values = compared[0] - compared[1]
        values[negligible(values, *compared)] = 0.0
    values, exponent = rescaled(values)
    trainings, examples = values.shape
    mean = float(values.mean())
    by_seed, by_example = values.mean(axis=1) - mean, values.mean(axis=0) - mean
    rest = values - mean - by_seed[:, None] - by_example
    variances, freedom = np.zeros(3), np.array([trainings - 1, examples - 1, 0])
    freedom[2] = freedom[0] * freedom[1]
    for index, (deviations, count) in enumerate(
        ((by_seed, trainings), (by_example, examples), (rest, trainings * examples))
    ):
        if freedom[index] and not negligible(np.abs(deviations).max(), values):
            variances[index] = float(np.square(deviations).sum()) / freedom[index] / count

    def said(variance: float, degrees: float) -> Paired:
        if not degrees:
            return Paired(float(np.ldexp(mean, exponent)), None, None)
        half = float(stats.t.ppf(0.975, degrees)) * math.sqrt(variance)
        middle, low, high = np.ldexp([mean, mean - half, mean + half], exponent).tolist()
        p = None
        if variance:
            p = float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), degrees))
        return Paired(middle, (low, high), p)

    of_seeds, of_examples, of_rest = variances.tolist()
    # Variances of seeds and examples are not negative.
    total = max(of_seeds, of_rest) + max(of_examples, of_rest) - of_rest
    least = float(freedom[:2].min())
    degrees = least
    if least and total:
        degrees = max(least, 1 / float((np.square(variances / total) / freedom).sum()))
    parts = [
        said(of_seeds, float(freedom[0])),
        said(of_examples, float(freedom[1])),
        said(total, degrees),
    ]
    if of_shares and not any(variances):
        middle, (_, rare) = parts[0].mean, share_interval([(0, examples)])
        ends = max(0.0 if minus is None else -1.0, middle - rare), min(1.0, middle + rare)
        parts[1:] = [replace(part, interval=part.interval and ends) for part in parts[1:]]
    return Crossed(*parts)


def rank_correlation(
    a: Floats, b: Floats, *, kind: Literal["spearman", "kendall"] = "spearman"
) -> float:
    """Return Spearman's rho or Kendall's tau-b; 0 if one of the two is constant."""
    a, b = tied(a, FLOAT64_ROUNDING), tied(b, FLOAT64_ROUNDING)
    if len(a) < 3:
        return 0.0
    if a.min() == a.max() or b.min() == b.max():
        return 0.0
    correlation = stats.spearmanr(a, b) if kind == "spearman" else stats.kendalltau(a, b)
    return float(correlation.statistic)


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in the same order."""
    order = np.argsort(values)
    factors = len(values) - np.arange(len(values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(values)[order] * factors))
    return [float(adjusted[rank]) for rank in np.argsort(order)]


def shown_p(p: float) -> str:
    """Return a p-value for people, after its name: ``= 0.012``, or ``< 0.001``."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"


def mean_intervals(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Return lower end, mean and upper end for each column of (n, m) values.

    The ends are those of ``mean_interval``; for n = 1 both are the mean.
    """
    columns = [(mean, *(ends or (mean, mean))) for mean, ends in map(mean_interval, values.T)]
    mean, low, high = np.array(columns).T
    return low, mean, high


def pareto_front(*objectives: Sequence[float]) -> list[int]:
    """Return the numbers of those that none beats in all objectives, the best first value first.

    Of equal ones the first stays.

    Args:
        objectives: (n,) values of each, larger is better.

    Examples:
        >>> pareto_front([3, 2, 1, 3], [1, 2, 1, 0])
        [0, 1]
    """
    points = np.array(objectives, dtype=np.float64).T
    chosen: list[int] = []
    for i in np.lexsort(-points.T[::-1]).tolist():
        if not (points[chosen] >= points[i]).all(axis=1).any():
            chosen.append(i)
    return chosen


def share_interval(counts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return a 95% interval of the mean share of successes over similar groups.

    Groups differ, and there are few: Student's t over the groups, on the scale of the arcsine
    square root, with half a success and half a failure added to each (Anscombe 1948) and at least
    the spread of the counts. A percentile bootstrap over two to four groups covers 61 to 90%, this
    87% and more (``tests/benchmarks/intervals.py``). For a single group, the exact interval of a
    binomial (Clopper and Pearson 1934), which holds for that group.

    Args:
        counts: (successes, trials) of each group; ties count half.

    Examples:
        >>> low, high = share_interval([(29, 30), (20, 30), (27, 30)])
        >>> 0.4 < low < 0.85 < high
        True
    """
    wins, trials = np.array(counts, dtype=np.float64).T
    estimate = float((wins / trials).mean())
    if len(wins) == 1:
        won, lost = float(wins[0]), float(trials[0] - wins[0])
        least = stats.beta.ppf(0.025, won, lost + 1) if won else 0.0
        most = stats.beta.ppf(0.975, won + 1, lost) if lost else 1.0
        return float(least), float(most)
    angle, error = _angle(wins, trials)
    half = float(stats.t.ppf(0.975, len(wins) - 1)) * error
    ends = np.clip([angle - half, angle + half], 0.0, np.pi / 2)
    low, high = (np.sin(ends) ** 2).tolist()
    return min(low, estimate), max(high, estimate)


def share_p(counts: Sequence[tuple[float, int]]) -> float:
    """Return the two-sided p of a mean share of one half, by the test behind ``share_interval``.

    For a single group, that is the sign test.

    Args:
        counts: (successes, trials) of each group; ties count half.

    Examples:
        >>> share_p([(15, 30)]), share_p([(30, 30), (30, 30), (29, 30)]) < 0.05
        (1.0, True)
    """
    wins, trials = np.array(counts, dtype=np.float64).T
    if len(wins) == 1:
        more = float(max(wins[0], trials[0] - wins[0]))
        return min(1.0, 2 * float(stats.beta.cdf(0.5, more, float(trials[0]) - more + 1)))
    angle, error = _angle(wins, trials)
    return float(2 * stats.t.sf(abs(angle - np.pi / 4) / error, len(wins) - 1))


def _angle(wins: Floats, trials: Floats) -> tuple[float, float]:
    """Return the mean arcsine square root of shares, and its standard error."""
    angles = np.arcsin(np.sqrt((wins + 0.5) / (trials + 1)))
    within = float((1 / (4 * trials)).mean())
    spread = max(float(angles.var(ddof=1)), within) / len(angles)
    return float(angles.mean()), math.sqrt(spread)
