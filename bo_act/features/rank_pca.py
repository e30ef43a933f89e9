"""Coordinates: principal components of a kind of feature, each scaled by rank.

The embedding is made of them, and a subset is spread out in them. Only one chunk of rows at a time
is ever widened to float64, so that a table of half a million functions needs little more memory
than itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bo_act.features.table import Block

# Rows widened to float64 at once: 34 MB for 256 columns, and a few temporaries of that size.
_CHUNK = 16_384

# Row numbers (m,) → their feature curves (m, k) float64.
Curves = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class RankPca:
    """Where functions lie by one kind of feature, learnt from some and valid for any.

    Attributes:
        mean: (k,) of the curves.
        components: (k, c) leading eigenvectors of their covariance.
        apart: (d,) which of the columns (numbers of their own, then components) are not the same
            for all.
        scale: (d,) largest size of each column that is not.
        known: (n, d) those columns of the functions learnt from, each sorted.
    """

    mean: NDArray[np.float64]
    components: NDArray[np.float64]
    apart: NDArray[np.bool_]
    scale: NDArray[np.float64]
    known: NDArray[np.float64]

    @classmethod
    def fit(cls, rows: np.ndarray, curves: Curves, own: np.ndarray, components: int) -> RankPca:
        """Learn it from rows (n,) of curves, and numbers of their own (n, e)."""
        mean, leading = _principal(rows, curves, components)
        columns = np.column_stack([own, _projected(rows, curves, mean, leading)])
        # A coordinate that is the same everywhere says nothing.
        apart = np.ptp(columns, axis=0) > 0
        scale = np.abs(columns[:, apart]).max(axis=0)
        scale[scale == 0] = 1.0
        known = np.sort(_rounded(columns[:, apart], scale), axis=0)
        return cls(mean, leading, apart, scale, known)

    def place(self, rows: np.ndarray, curves: Curves, own: np.ndarray) -> NDArray[np.float64]:
        """Return coordinates of rows (m,), (m, d) in [0, 1]: ranks among the functions known.

        Ranks make the few far-away functions (exp of cosh) neighbours of the merely large, so
        that one length scale serves the whole space.
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
    """Learn where functions lie by their outputs.

    The coordinates are the moments and the leading components of the z-scored function.

    Args:
        blocks: ``outputs`` and ``moments`` of N functions.
        rows: (n,) functions that have both.
        components: how many, at most.
    """
    return RankPca.fit(rows, _shapes(blocks), _moments(blocks, rows), components)


def place_outputs(frame: RankPca, blocks: Mapping[str, Block], rows: np.ndarray) -> np.ndarray:
    """Return where functions lie in a frame of outputs, (m, d) in [0, 1].

    Args:
        frame: from ``output_frame``, of these functions or of others.
        blocks: ``outputs`` and ``moments`` of N functions.
        rows: (m,) functions that have both.
    """
    return frame.place(rows, _shapes(blocks), _moments(blocks, rows))


def output_coordinates(
    blocks: Mapping[str, Block], rows: np.ndarray, components: int
) -> NDArray[np.float64]:
    """Return where functions lie by their outputs among themselves, (n, d) in (0, 1)."""
    return place_outputs(output_frame(blocks, rows, components), blocks, rows)


def _moments(blocks: Mapping[str, Block], rows: np.ndarray) -> NDArray[np.float64]:
    return np.asarray(blocks["moments"].values[rows].astype(np.float64))


def _shapes(blocks: Mapping[str, Block]) -> Curves:
    values = blocks["outputs"].values

    def shape(some: np.ndarray) -> np.ndarray:
        f = np.sinh(values[some].astype(np.float64))
        mean = f.mean(axis=1, keepdims=True)
        deviation = f.std(axis=1, keepdims=True)
        # Constants have no shape; rounding error must not be blown up into one.
        flat = deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))
        return np.where(flat, 0.0, (f - mean) / np.where(flat, 1.0, deviation))

    return shape


def spectrum_coordinates(
    blocks: Mapping[str, Block], rows: np.ndarray, components: int
) -> NDArray[np.float64]:
    """Return where functions lie by their Fisher spectra among themselves, (n, d) in (0, 1).

    The coordinates are components of the log-eigenvalue quantiles of all layers. Null eigenvalues
    are the lowest of them, so that the null-space masses say nothing more.

    Args:
        blocks: ``fim`` of N functions.
        rows: (n,) functions that have it; ranks and components are among them.
        components: how many, at most.
    """
    values = blocks["fim"].values

    def curves(some: np.ndarray) -> np.ndarray:
        return np.asarray(values[some].astype(np.float64))

    none = np.empty((len(rows), 0))
    return RankPca.fit(rows, curves, none, components).place(rows, curves, none)


def _chunks(rows: np.ndarray, curves: Curves) -> Iterator[np.ndarray]:
    return (curves(rows[start : start + _CHUNK]) for start in range(0, len(rows), _CHUNK))


def _principal(
    rows: np.ndarray, curves: Curves, components: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean (k,) and the leading eigenvectors, (k, at most ``components``)."""
    mean = np.asarray(sum(chunk.sum(axis=0) for chunk in _chunks(rows, curves)) / len(rows))
    # Eigenvectors of the smaller of the two products: a million rows never enter an SVD, nor do the
    # ten thousand quantiles of a deep network.
    if len(rows) < len(mean):
        centred = np.concatenate([chunk - mean for chunk in _chunks(rows, curves)])
        variances, vectors = np.linalg.eigh(centred @ centred.T)
        vectors = centred.T @ vectors[:, -components:]
        vectors /= np.maximum(np.linalg.norm(vectors, axis=0), 1e-300)
    else:
        covariance = np.zeros((len(mean), len(mean)))
        for chunk in _chunks(rows, curves):
            centred = chunk - mean
            covariance += centred.T @ centred
        variances, vectors = np.linalg.eigh(covariance)
    rank = int((variances > 1e-10 * max(variances[-1], 1e-300)).sum())
    leading = vectors[:, ::-1][:, : min(components, rank)]
    # The sign of an eigenvector is arbitrary: make its first large entry positive. (The largest one
    # is no choice where the curves are odd functions: it has a twin of the other sign.)
    sizes = np.abs(leading)
    large = (sizes > 0.7 * sizes.max(axis=0)).argmax(axis=0)
    return mean, leading * np.sign(leading[large, np.arange(leading.shape[1])])


def _projected(
    rows: np.ndarray, curves: Curves, mean: np.ndarray, components: np.ndarray
) -> NDArray[np.float64]:
    return np.concatenate([(chunk - mean) @ components for chunk in _chunks(rows, curves)])


def _rounded(columns: np.ndarray, scale: np.ndarray) -> NDArray[np.float64]:
    # So that functions equal up to rounding share a rank on every machine.
    return np.asarray(np.round(columns / scale, 6))
