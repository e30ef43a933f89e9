"""Coordinates: principal components of a kind of feature, each scaled by rank.

The embedding is made of them, and a subset is spread out in them. Only one chunk of rows at a time
is ever widened to float64, so that a table of half a million functions needs little more memory
than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from bo_act.features.table import Block

# Rows widened to float64 at once: 34 MB for 256 columns, and a few temporaries of that size.
_CHUNK = 16_384

# Row numbers (m,) → their feature curves (m, k) float64.
Curves = Callable[[np.ndarray], np.ndarray]


def output_coordinates(
    blocks: Mapping[str, Block], rows: np.ndarray, components: int
) -> NDArray[np.float64]:
    """Return where functions lie by their outputs, (n, d) in (0, 1).

    The coordinates are the moments and the leading components of the z-scored function. Ranks make
    the few far-away functions (exp of cosh) neighbours of the merely large, so that one length
    scale serves the whole space.

    Args:
        blocks: ``outputs`` and ``moments`` of N functions.
        rows: (n,) functions that have both; ranks and components are among them.
        components: how many, at most.
    """
    values, moments = blocks["outputs"].values, blocks["moments"].values

    def shape(some: np.ndarray) -> np.ndarray:
        f = np.sinh(values[some].astype(np.float64))
        mean = f.mean(axis=1, keepdims=True)
        deviation = f.std(axis=1, keepdims=True)
        # Constants have no shape; rounding error must not be blown up into one.
        flat = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
        return np.where(flat, 0.0, (f - mean) / np.where(flat, 1.0, deviation))

    leading = _principal(rows, shape, components)
    return _ranked(np.column_stack([moments[rows].astype(np.float64), leading]))


def spectrum_coordinates(
    blocks: Mapping[str, Block], rows: np.ndarray, components: int
) -> NDArray[np.float64]:
    """Return where functions lie by their Fisher spectra, (n, d) in (0, 1).

    The coordinates are components of the log-eigenvalue quantiles and the null-space masses
    together. A null-space mass is in [0, 1] and a layer's quantiles are many numbers in tens, so
    the mass is weighted to count about as much as its layer's quantiles.

    Args:
        blocks: ``fim`` and ``fim_null`` of N functions.
        rows: (n,) functions that have them; ranks and components are among them.
        components: how many, at most.
    """
    values, null = blocks["fim"].values, blocks["fim_null"].values
    per_layer = values.shape[1] // null.shape[1]
    scale = np.sqrt(per_layer) * _deviation(rows, lambda some: values[some].astype(np.float64))

    def curves(some: np.ndarray) -> np.ndarray:
        return np.column_stack([values[some], null[some].astype(np.float64) * scale])

    return _ranked(_principal(rows, curves, components))


def _chunks(rows: np.ndarray, curves: Curves) -> Iterator[np.ndarray]:
    return (curves(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK))


def _deviation(rows: np.ndarray, curves: Curves) -> float:
    """Return the standard deviation of all numbers of all rows together."""
    count = len(rows) * curves(rows[:1]).size
    mean = sum(chunk.sum() for chunk in _chunks(rows, curves)) / count
    squares = sum(np.square(chunk - mean).sum() for chunk in _chunks(rows, curves))
    return float(np.sqrt(squares / count))


def _principal(rows: np.ndarray, curves: Curves, components: int) -> np.ndarray:
    """Return the leading principal components, (rows, at most ``components``)."""
    mean = sum(chunk.sum(axis=0) for chunk in _chunks(rows, curves)) / len(rows)
    covariance = np.zeros((len(mean), len(mean)))
    for chunk in _chunks(rows, curves):
        centred = chunk - mean
        covariance += centred.T @ centred
    # Eigenvectors of the small covariance: a million rows never enter an SVD.
    variances, vectors = np.linalg.eigh(covariance)
    rank = int((variances > 1e-10 * max(variances[-1], 1e-300)).sum())
    leading = vectors[:, ::-1][:, : min(components, rank)]
    # The sign of an eigenvector is arbitrary: make its first large entry positive. (The largest one
    # is no choice where the curves are odd functions: it has a twin of the other sign.)
    sizes = np.abs(leading)
    large = (sizes > 0.7 * sizes.max(axis=0)).argmax(axis=0)
    leading = leading * np.sign(leading[large, np.arange(leading.shape[1])])
    return np.concatenate([(chunk - mean) @ leading for chunk in _chunks(rows, curves)])


def _ranked(columns: np.ndarray) -> NDArray[np.float64]:
    # A coordinate that is the same everywhere says nothing.
    columns = columns[:, np.ptp(columns, axis=0) > 0]
    # Rounded, so that functions equal up to rounding share a rank on every machine.
    scale = np.abs(columns).max(axis=0)
    rounded = np.round(columns / np.where(scale > 0, scale, 1.0), 6)
    return np.asarray((rankdata(rounded, axis=0) - 0.5) / len(columns))
