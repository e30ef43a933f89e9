"""A subset of functions, spread out over a space too large for the spectra of all functions.

Farthest-point traversal (Gonzalez 1985, "Clustering to minimize the maximum intercluster
distance"): each further function is the one farthest from all chosen so far. The largest distance
of any function from the chosen ones is then at most twice the least possible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bo_act.errors import FeatureError
from bo_act.features.rank_pca import output_coordinates
from bo_act.features.table import Block

# Components of the z-scored function, beside its moments; the embedding's default.
_COMPONENTS = 6


def spread(
    blocks: Mapping[str, Block], count: int, *, include: Sequence[int] = ()
) -> NDArray[np.int64]:
    """Choose functions spread out over the output features.

    Distances are Euclidean in the output block of the embedding, where the search looks for
    neighbours. These coordinates are ranks, so there is no far corner to waste choices on.

    Args:
        blocks: ``outputs`` and ``moments`` of N functions.
        count: how many functions; all, if fewer have output features.
        include: functions to start from, such as the baselines. Those without output features are
            skipped.

    Returns:
        (count,) indices of the functions, ascending. The same on every machine.

    Raises:
        FeatureError: ``include`` has more than ``count`` functions.
    """
    rows = np.flatnonzero(blocks["outputs"].present)
    start = np.flatnonzero(np.isin(rows, include))
    if count < max(1, len(start)):
        raise FeatureError(
            f"expected a subset of at least {max(1, len(start))} functions, including "
            f"{len(start)} given ones, got {count}; ask for a larger subset"
        )
    if count >= len(rows):
        return rows
    return rows[np.sort(farthest(output_coordinates(blocks, rows, _COMPONENTS), count, start))]


def farthest(
    points: np.ndarray, count: int, start: Sequence[int] | np.ndarray = ()
) -> NDArray[np.int64]:
    """Choose points by farthest-point traversal, in order of choice.

    Args:
        points: (n, d).
        count: how many, at most n.
        start: distinct points to choose first; default: the first point.

    Returns:
        (count,) indices; among equally far points the lowest.
    """
    # One contiguous float32 column per dimension, and elementwise arithmetic: half the memory
    # traffic of rows, and, unlike a matrix product, the same bits on every machine.
    columns = np.ascontiguousarray(points.T, dtype=np.float32)
    chosen = np.empty(count, dtype=np.int64)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    distance, part = np.empty_like(nearest), np.empty_like(nearest)
    for step in range(count):
        centre = int(start[step]) if step < len(start) else int(nearest.argmax())
        chosen[step] = centre
        distance.fill(0)
        for column in columns:
            np.subtract(column, column[centre], out=part)
            np.multiply(part, part, out=part)
            np.add(distance, part, out=distance)
        np.minimum(nearest, distance, out=nearest)
        nearest[centre] = -1  # never again, even if only its equals are left
    return chosen
