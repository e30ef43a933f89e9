"""Rank PCA: principal components of a kind of feature, each scaled by rank.

The embedding consists of these coordinates, and a subset is spread out in them. Only one chunk of
rows at a time is widened to float64, so half a million functions need little more memory than
their table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError, eigsh

from bo_act.features.table import Block

# Rows widened to float64 at once: 34 MB for 256 columns, and a few temporaries of that size.
_CHUNK = 16_384

# Row numbers (m,) → their feature curves (m, k) float64.
Curves = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class RankPca:
    """Coordinates of functions by one kind of feature, learnt from some functions, valid for all.

    Attributes:
        mean: (k,) of the curves.
        components: (k, c) leading eigenvectors of their covariance.
        apart: (d,) which columns (extra numbers, then components) differ between functions.
        scale: (d,) largest magnitude of each such column.
        known: (n, d) these columns of the learnt functions, each sorted.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    apart: NDArray[np.bool_]
    scale: NDArray[np.float64]
    known: NDArray[np.float64]

    @classmethod
    def fit(cls, rows: np.ndarray, curves: Curves, own: np.ndarray, components: int) -> RankPca:
        """Learn it from rows (n,) of curves and extra numbers (n, e)."""
        mean, leading = _principal(rows, curves, components)
        columns = np.column_stack([own, _projected(rows, curves, mean, leading)])
        # A constant coordinate has no information.
        apart = np.ptp(columns, axis=0) > 0
        scale = np.abs(columns[:, apart]).max(axis=0)
        scale[scale == 0] = 1.0
        known = np.sort(_rounded(columns[:, apart], scale), axis=0)
        return cls(mean, leading, apart, scale, known)

    def place(self, rows: np.ndarray, curves: Curves, own: np.ndarray) -> NDArray[np.float64]:
        """Return coordinates of rows (m,), (m, d) in [0, 1]: ranks among the learnt functions.

        Ranks make the few extreme functions (exp of cosh) neighbours of merely large ones, so one
        length scale serves the whole space.
        """
        columns = np.column_stack([own, _projected(rows, curves, self.mean, self.components)])
        values = _rounded(columns[:, self.apart], self.scale)
        return np.column_stack(
            [
                (np.searchsorted(known, column) + np.searchsorted(known, column, side="right"))
                / (2 * len(known))
                for known, column in zip(self.known.T, values.T, strict=True)
            ]
            or [np.empty((len(rows), 0))]
        )


def output_frame(blocks: Mapping[str, Block], rows: np.ndarray, components: int) -> RankPca:
    """Learn the coordinates of functions by their outputs.

    The coordinates are the moments and the leading components of the z-scored function.

    Args:
        blocks: ``outputs`` and ``moments`` of N functions.
        rows: (n,) functions with both.
        components: how many, at most.
    """
    return RankPca.fit(rows, _shapes(blocks), _moments(blocks, rows), components)


def place_outputs(frame: RankPca, blocks: Mapping[str, Block], rows: np.ndarray) -> np.ndarray:
    """Return the coordinates of functions in a frame of outputs, (m, d) in [0, 1].

    Args:
        frame: from ``output_frame``, of any functions.
        blocks: ``outputs`` and ``moments`` of N functions.
        rows: (m,) functions with both.
    """
    return frame.place(rows, _shapes(blocks), _moments(blocks, rows))


def output_coordinates(
    blocks: Mapping[str, Block], rows: np.ndarray, components: int
) -> NDArray[np.float64]:
    """Return the coordinates of functions by their outputs, ranked among themselves, (n, d)."""
    return place_outputs(output_frame(blocks, rows, components), blocks, rows)


def _moments(blocks: Mapping[str, Block], rows: np.ndarray) -> NDArray[np.float64]:
    return np.asarray(blocks["moments"].values[rows].astype(np.float64))


def _shapes(blocks: Mapping[str, Block]) -> Curves:
    values = blocks["outputs"].values

    def shape(chosen: np.ndarray) -> np.ndarray:
        f = np.sinh(values[chosen].astype(np.float64))
        mean = f.mean(axis=1, keepdims=True)
        deviation = f.std(axis=1, keepdims=True)
        # Constants have no shape; do not scale rounding errors up to one.
        flat = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
        return np.where(flat, 0.0, (f - mean) / np.where(flat, 1.0, deviation))

    return shape


def spectrum_coordinates(
    blocks: Mapping[str, Block], rows: np.ndarray, components: int
) -> NDArray[np.float64]:
    """Return the coordinates of functions by their Fisher spectra, ranked among themselves, (n, d).

    The coordinates are components of the log-eigenvalue quantiles of all layers. Null eigenvalues
    are the lowest quantiles, so the null-space masses add nothing.

    Args:
        blocks: ``fim`` of N functions.
        rows: (n,) functions with spectra; ranks and components are among them.
        components: how many, at most.
    """
    values = blocks["fim"].values

    def curves(chosen: np.ndarray) -> np.ndarray:
        return np.asarray(values[chosen].astype(np.float64))

    none = np.empty((len(rows), 0))
    return RankPca.fit(rows, curves, none, components).place(rows, curves, none)


def _chunks(rows: np.ndarray, curves: Curves) -> Iterator[np.ndarray]:
    return (curves(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK))


def _principal(
    rows: np.ndarray, curves: Curves, components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean (k,) and the leading eigenvectors, (k, at most ``components``)."""
    mean = np.asarray(sum(chunk.sum(axis=0) for chunk in _chunks(rows, curves)) / len(rows))
    # Eigenvectors of the smaller of the two products: neither a million rows nor the ten thousand
    # quantiles of a deep network enter an SVD.
    if len(rows) < len(mean):
        centred = np.concatenate([chunk - mean for chunk in _chunks(rows, curves)])
        variances, vectors = _largest(centred @ centred.T, components)
        vectors = centred.T @ vectors
        vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-300)
    else:
        covariance = np.zeros((len(mean), len(mean)))
        for chunk in _chunks(rows, curves):
            centred = chunk - mean
            covariance += centred.T @ centred
        variances, vectors = _largest(covariance, components)
    rank = int((variances > 1e-10 * max(variances[-1], 1e-300)).sum())
    leading = vectors[:, ::-1][:, : min(components, rank)]
    # The sign of an eigenvector is arbitrary: make its first large entry positive. (The largest
    # entry of an odd curve has a twin of the other sign.)
    sizes = np.abs(leading)
    large = (sizes > 0.7 * sizes.max(axis=0)).argmax(axis=0)
    return mean, leading * np.sign(leading[large, np.arange(leading.shape[1])])


def _largest(
    matrix: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ``count`` largest eigenvalues, rising, and their vectors, of a symmetric matrix.

    Lanczos iterations to full precision: 15 times as fast for a thousand rows as all eigenvectors.
    """
    if 4 * count < len(matrix) and matrix.any():
        start = np.random.default_rng(0).normal(size=len(matrix))
        with suppress(ArpackError):
            return cast(tuple[Any, Any], eigsh(matrix, count, v0=start))
    variances, vectors = np.linalg.eigh(matrix)
    return variances[-count:], vectors[:, -count:]


def _projected(
    rows: np.ndarray, curves: Curves, mean: np.ndarray, components: np.ndarray
) -> NDArray[np.float64]:
    return np.concatenate([(chunk - mean) @ components for chunk in _chunks(rows, curves)])


def _rounded(columns: np.ndarray, scale: np.ndarray) -> NDArray[np.float64]:
    # Functions equal up to rounding share a rank on every machine.
    return np.asarray(np.round(columns / scale, 6))
