"""Observations: measured values, and their warping for a Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import norm, rankdata

from bo_act.errors import SearchError, shortened
from bo_act.search.configurations import Configurations
from bo_act.statistics import FLOAT64_ROUNDING, deviation, rescaled, tied

Targets = Literal["rank_normal", "winsorized", "standardized"]

_FEW = 5  # of fewer values, a single one determines a quartile
_FEWEST = 3  # different values that quartiles need


@dataclass(frozen=True, eq=False, init=False)
class Observations:
    """Values of n evaluated configurations, larger is better.

    Args:
        measured: the configurations; if only functions are searched, their indices, (n,).
        values: (n,) float64; a diverged function has the value of chance. With several objectives,
            the first one's values.
        pruned: configurations that were stopped early: their values are unknown, but not good.
        closed: functions that were given up, an index or K indices each; never proposed again.
        seconds: (n,) duration of each evaluation, NaN if unknown or diverged; None if not needed.
        variances: (n,) of the values, such as means over several seeds; None if unknown.
        others: (n, M - 1) values of further objectives, larger is better; None for one objective.
        constraints: (n, C) values of constraints, at most 0 if satisfied, NaN if unknown; None
            without constraints.

    Examples:
        >>> import numpy as np
        >>> values = np.array([0.91, 0.95])
        >>> observations = Observations(np.array([3, 7]), values, pruned={5})
        >>> len(observations), observations.indices.tolist()
        (2, [3, 7])
    """

    measured: Configurations
    values: np.ndarray
    pruned: Configurations
    closed: frozenset[tuple[int, ...]]
    seconds: np.ndarray | None
    variances: np.ndarray | None
    others: np.ndarray
    constraints: np.ndarray

    def __init__(
        self,
        measured: Configurations | np.ndarray,
        values: np.ndarray,
        pruned: Configurations | Collection[int] = (),
        closed: Collection[int | tuple[int, ...]] = (),
        seconds: np.ndarray | None = None,
        *,
        variances: np.ndarray | None = None,
        others: np.ndarray | None = None,
        constraints: np.ndarray | None = None,
    ) -> None:
        if np.ndim(values) != 1 or len(measured) != len(values):
            raise SearchError(
                f"expected as many indices as values, got ({len(measured)},) and {np.shape(values)}"
            )
        if not np.isfinite(values).all():
            bad = int(np.flatnonzero(~np.isfinite(values))[0])
            raise SearchError(
                f"observation {bad} has the value {values[bad]}; expected a finite number "
                "(a diverged function gets the chance-level value)"
            )
        if variances is not None:
            given = np.asarray(variances, dtype=np.float64)
            if given.shape != np.shape(values) or not (np.isfinite(given) & (given >= 0)).all():
                raise SearchError(
                    f"expected {len(values)} finite variances of at least 0, one for each value, "
                    f"got {shortened(repr(variances))}"
                )
        nothing = np.empty((len(values), 0))
        others = nothing if others is None else np.asarray(others, dtype=np.float64)
        constraints = nothing if constraints is None else np.asarray(constraints, dtype=np.float64)
        for what, table, wrong in (
            ("further objectives", others, ~np.isfinite(others)),
            ("constraints", constraints, np.isinf(constraints)),
        ):
            if table.ndim != 2 or len(table) != len(values) or wrong.any():
                raise SearchError(
                    f"expected finite values of {what} for each of {len(values)} observations, "
                    f"(n, number), got {shortened(repr(table))}"
                )
        measured = Configurations.of(measured)
        given_up = (
            functions if isinstance(functions, tuple) else (int(functions),) for functions in closed
        )
        object.__setattr__(self, "measured", measured)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "pruned", Configurations.of(pruned, like=measured))
        object.__setattr__(self, "closed", frozenset(given_up))
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "variances", variances)
        object.__setattr__(self, "others", others)
        object.__setattr__(self, "constraints", constraints)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def indices(self) -> np.ndarray:
        """Indices of the evaluated functions, (n,); the first of several activations."""
        return self.measured.functions[:, 0]

    @property
    def is_plain(self) -> bool:
        """Whether there is one objective without constraints."""
        return not self.others.shape[1] and not self.constraints.shape[1]

    def is_any_feasible(self, rows: np.ndarray) -> bool:
        """Tell whether one of these observations is known to satisfy all constraints, if any."""
        if not self.constraints.shape[1]:
            return True
        return bool(satisfied(self.constraints[rows]).any())

    @property
    def objectives(self) -> np.ndarray:
        """Values of all objectives, (n, M)."""
        return np.column_stack([self.values, self.others])

    @property
    def merits(self) -> np.ndarray:
        """A ranking of the observations, (n,), larger is better.

        The value; with several objectives, minus the number of observations that dominate it.
        Violated constraints rank below all others.
        """
        if self.is_plain:
            return self.values
        worth = self.objectives
        no_worse = (worth[:, None] >= worth[None]).all(axis=2)
        beaten = (no_worse & ~no_worse.T).sum(axis=0)
        violated = np.nan_to_num(self.constraints, nan=0.0).max(axis=1, initial=0.0) > 0
        return np.asarray(-(beaten + len(worth) * violated), dtype=np.float64)

    def among(self, rows: np.ndarray) -> Observations:
        """Return the observations with only the values of some rows."""
        seconds = None if self.seconds is None else self.seconds[rows]
        variances = None if self.variances is None else self.variances[rows]
        measured, values = self.measured[rows], self.values[rows]
        return Observations(
            measured,
            values,
            self.pruned,
            self.closed,
            seconds,
            variances=variances,
            others=self.others[rows],
            constraints=self.constraints[rows],
        )


def satisfied(constraints: np.ndarray) -> np.ndarray:
    """Tell which observations satisfy all their known constraints, at least one, (n,).

    Args:
        constraints: (n, C) as in ``Observations``.
    """
    known = np.isfinite(constraints)
    return np.asarray((np.where(known, constraints, 0.0) <= 0).all(axis=1) & known.any(axis=1))


def count_different(values: np.ndarray) -> int:
    """Count the values that differ by more than rounding."""
    return len(np.unique(_comparable(values)[0]))


def warp_targets(values: np.ndarray, how: Targets) -> np.ndarray:
    """Warp values to targets of the Gaussian process.

    About half of a space is at chance, far below all values of interest; a Gaussian process with
    one length scale cannot follow such a drop. The targets do not depend on the unit, and values
    that are equal up to rounding have equal targets.

    Args:
        values: (n,) finite, larger is better.
        how: ``rank_normal``: normal quantile of the rank, ties sharing the mean rank;
            ``winsorized``: values below the lower fence are raised to it, values above the upper
            one move near the best below it (see ``fences``), then all are standardized;
            ``standardized``: mean 0, variance 1.

    Returns:
        (n,) float64, of mean about 0 and of the order of 1; all 0 if the values are equal.
    """
    values, _ = _comparable(values)
    if how == "rank_normal":
        return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)))
    if values.min() == values.max():  # the deviation is a rounding error, not zero
        return np.zeros_like(values)
    if how == "winsorized":
        values = _winsorized(values)
    centred, _ = rescaled(values - values.mean())
    return np.asarray(centred / deviation(centred))


def warp_variances(
    variances: np.ndarray, values: np.ndarray, targets: np.ndarray, how: Targets
) -> np.ndarray:
    """Return the variances of values in units of the warped targets.

    Args:
        variances: (n,) of the values.
        values: (n,) as observed.
        targets: (n,) warped.
        how: as in ``warp_targets``. Ranks have no unit: the deviation of a target is its change
            within a standard deviation of the value.

    Returns:
        (n,) finite; 0 if all targets are equal.
    """
    deviations = np.sqrt(variances)
    if how != "rank_normal":
        with np.errstate(over="ignore"):
            return np.asarray(np.nan_to_num(np.square(deviations / unit(values, how))))
    order = np.lexsort((targets, values))
    ends = [
        np.interp(values + sign * deviations, values[order], targets[order]) for sign in (-1, 1)
    ]
    return np.asarray(np.square((ends[1] - ends[0]) / 2))


def unit(values: np.ndarray, how: Targets) -> float:
    """Return the unit of the warped targets in units of the value.

    Args:
        values: (n,) as observed.
        how: ``winsorized``, with the unit between the fences, or ``standardized``; ranks have no
            unit.

    Returns:
        The unit; infinity if all targets are equal.
    """
    values, exponent = _comparable(values)
    if values.min() == values.max():
        return math.inf
    if how == "winsorized":
        values = _winsorized(values)
    return float(np.ldexp(deviation(values), exponent))


def fences(values: np.ndarray) -> tuple[float, float]:
    """Return the lower and upper fence of the values of interest.

    With q the quartiles of the values from the median up, and s = q75 - q25, the fences are
    q25 - 1.5 s and q75 + 2 s. If these are fewer than five values, or both quartiles are equal, as
    for a metric of few digits, each different value counts once: otherwise all but the best would
    be outside. Among few values, a spurious one may be a quartile: then s is at most
    2 (q50 - q25), and q25 at most 10 (q75 - q50) below q50.

    Args:
        values: (n,) finite.
    """
    upper = values[values >= np.median(values)]
    low, high = np.quantile(upper, [0.25, 0.75])
    if len(upper) < _FEW or low == high:
        low, middle, high = np.quantile(_different(values), [0.25, 0.5, 0.75])
        low = max(low, middle - 10 * (high - middle))
        high = min(high, low + 2 * (middle - low))
    return float(low - 1.5 * (high - low)), float(high + 2 * (high - low))


def _different(values: np.ndarray) -> np.ndarray:
    """Return the different values from the median up; if too few, from their own median."""
    distinct = np.unique(values)
    upper = distinct[distinct >= np.median(values)]
    if len(upper) < _FEWEST:
        upper = distinct[distinct >= np.median(distinct)]
    return distinct if len(upper) < _FEWEST else upper


def inverse_warp(
    means: Sequence[float] | np.ndarray, targets: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Return predicted means in units of the value, interpolated between observed values.

    Args:
        means: (m,) in units of the warped target.
        targets: (n,) warped targets of the observations.
        values: (n,) observed values.

    Returns:
        (m,) values, within the range of the observed ones.
    """
    order = np.lexsort((values, targets))
    values, exponent = rescaled(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.interp(means, targets[order], values[order]), exponent))


def _comparable(values: np.ndarray) -> tuple[np.ndarray, int]:
    """Return values of the order of 1 with exact ties, and the removed exponent."""
    values, exponent = rescaled(np.asarray(values, dtype=np.float64))
    return tied(values, FLOAT64_ROUNDING), exponent


def _winsorized(values: np.ndarray) -> np.ndarray:
    """Raise values below the lower fence to it; move those above the upper one near the best."""
    low, high = fences(values)
    # A value at the fence is inside in every unit, whatever its last digits.
    outside = values > high + FLOAT64_ROUNDING * np.abs(values).max()
    best = values[~outside].max()
    # In their order, and at most half of q75 - q25 better: a value may be a typing error.
    reach = (high - low) / 9
    more = np.maximum(values - best, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        near = best + reach / (1 + reach / more)
    return np.asarray(np.where(outside, near, np.maximum(values, low)))
