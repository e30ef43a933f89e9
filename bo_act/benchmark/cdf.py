"""Spectra of Act-Bench files: cumulative histograms of log eigenvalues by layer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

QUANTILES = 128
_LOW, _HIGH = -100.0, 100.0  # of the released histograms
_BINS = 100  # of our own
_ROUNDING = 1e-4  # allowed decrease of a distribution function
_SHARE = 0.5  # of the vectors that decrease at the end of a layer


def layer_ends(vectors: Collection[NDArray[np.float32]], length: int) -> list[int]:
    """Find the end of each layer's numbers, where vectors decrease; the last is ``length``.

    A distribution function never decreases, and the next one starts below the end of the last. A
    layer of a single bin, or of two with an empty second one, is 1 throughout and counts as the
    end of the previous layer, in all vectors alike.

    Args:
        vectors: (length,) each.
        length: of all of them.
    """
    falls = np.zeros(max(length - 1, 0), dtype=np.int64)
    for vector in vectors:
        falls += np.diff(vector) < -_ROUNDING
    ends = np.flatnonzero(falls > _SHARE * len(vectors)) + 1
    return [*ends.tolist(), length]


def layer_quantiles(vector: NDArray[np.float32], ends: Sequence[int]) -> NDArray[np.float32] | None:
    """Turn a vector into 128 quantiles per layer, at the levels (i + 1/2) / 128.

    The distribution is uniform within bins. Mass beyond the last edge (a distribution function
    that ends below 1) is put at that edge.

    Args:
        vector: (n,) the layers' distribution functions at the right edges of their bins.
        ends: of the L layers.

    Returns:
        (L · 128,), or None if a layer's numbers decrease, are all zero or leave [0, 1].
    """
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        heights = np.concatenate([[0.0], vector[start:end].astype(np.float64)])
        inside = 0 < heights[-1] <= 1 + _ROUNDING and heights.min() >= 0
        if not inside or (np.diff(heights) < -_ROUNDING).any():
            return None
        heights = np.maximum.accumulate(heights)
        parts.append(np.interp(levels, heights, np.linspace(_LOW, _HIGH, len(heights))))
    return np.concatenate(parts).astype(np.float32)


def cdf_vector(quantiles: NDArray[np.float32]) -> list[float]:
    """Turn (L, Q) quantiles into L distribution functions at the right edges of 100 bins."""
    levels = (np.arange(quantiles.shape[1]) + 0.5) / quantiles.shape[1]
    edges = np.linspace(_LOW, _HIGH, _BINS + 1)[1:]
    rows = [np.interp(edges, row, levels, left=0.0, right=1.0) for row in quantiles]
    return [round(float(value), 6) for row in rows for value in row]
