"""Observations: what has been measured, and how it is shown to a Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from scipy.stats import norm, rankdata

from bo_act.errors import SearchError

Targets = Literal["rank_normal", "winsorized", "standardized"]


@dataclass(frozen=True, eq=False)
class Observations:
    """Values of n evaluated functions, larger is better.

    Attributes:
        indices: (n,) index in the catalogue.
        values: (n,) float64; a diverged function has its chance-level value.
        pruned: indices whose evaluation was stopped early: their value is not known, but that it
            is no good one is.
        closed: indices that are not to be proposed though nothing is known of them (given up).
        seconds: (n,) how long each evaluation took, NaN where that is not known or, of a diverged
            one, says nothing of others; None where no one asks.
    """

    indices: np.ndarray
    values: np.ndarray
    pruned: frozenset[int] = field(default=frozenset())
    closed: frozenset[int] = field(default=frozenset())
    seconds: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.indices.shape != self.values.shape or self.indices.ndim != 1:
            raise SearchError(
                f"expected as many indices as values, got {self.indices.shape} and "
                f"{self.values.shape}"
            )
        if not np.isfinite(self.values).all():
            bad = int(np.flatnonzero(~np.isfinite(self.values))[0])
            raise SearchError(
                f"observation {bad} has the value {self.values[bad]}; expected a finite number "
                "(a diverged function is given its chance-level value)"
            )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def taken(self) -> frozenset[int]:
        """Indices that are not to be proposed."""
        return frozenset(self.indices.tolist()) | self.pruned | self.closed


def warp_targets(values: np.ndarray, how: Targets) -> np.ndarray:
    """Map values to what the Gaussian process models.

    About half of a space sits at chance level, far below all that is of interest, which a
    Gaussian process with one length scale cannot follow.

    Args:
        values: (n,) larger is better.
        how: ``rank_normal``: normal quantile of the rank, ties sharing the mean rank;
            ``winsorized``: values below q25 - 1.5 · (q75 - q25) of the upper half raised to it,
            then standardized; ``standardized``: mean 0, variance 1.

    Returns:
        (n,) float64, mean about 0 and of the order of 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if how == "rank_normal":
        return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)))
    values = _raised(values, how)
    if np.ptp(values) == 0:  # its deviation is rounding error, not zero
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / values.std())


def unit(values: np.ndarray, how: Targets) -> float:
    """Return what one unit of the warped targets is in units of the value.

    Args:
        values: (n,) as observed.
        how: ``winsorized`` or ``standardized``; ranks have no unit.

    Returns:
        The unit; infinity where all targets are equal.
    """
    values = _raised(np.asarray(values, dtype=np.float64), how)
    return float(values.std()) if np.ptp(values) else math.inf


def read_back(
    means: Sequence[float] | np.ndarray, targets: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Return what means of a surrogate are in units of the value, linearly between those observed.

    Args:
        means: (m,) in units of the warped target.
        targets: (n,) warped, of what was observed.
        values: (n,) the same, as observed.

    Returns:
        (m,) values, none beyond the best or the worst of those observed.
    """
    order = np.lexsort((values, targets))
    return np.asarray(np.interp(means, targets[order], values[order]))


def _raised(values: np.ndarray, how: Targets) -> np.ndarray:
    """Return values with the lower tail raised to its fence, if they are to be winsorized."""
    if how != "winsorized":
        return values
    upper = values[values >= np.median(values)]
    low, high = np.quantile(upper, [0.25, 0.75])
    return np.asarray(np.maximum(values, low - 1.5 * (high - low)))
