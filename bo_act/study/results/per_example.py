"""Values per test example of a training, packed to fit into the study.

Their mean is the metric. Right and wrong take a bit per example; other values are float32. Large
test sets are reduced to means of random groups, whose spread gives the same standard error.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST = 4_096  # numbers per training: 22 kB of text

KEY = "examples"
"""Key of the packed values in a run's record."""


def packed(values: NDArray[Any]) -> dict[str, Any] | None:
    """Pack (N,) values of examples, bool or numbers, for JSON.

    Returns:
        The packed values; None if there are fewer than two, or one is not finite.
    """
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    if values.dtype == bool:
        return {"bits": _text(np.packbits(values)), "count": len(values)}
    grouped = _grouped(values.astype(np.float64))
    with np.errstate(over="ignore"):
        small = grouped.astype("<f4")
    return {"float32": _text(small), "count": len(grouped)} if np.isfinite(small).all() else None


def unpacked(kept: Mapping[str, Any]) -> Floats:
    """Return the (N,) values given to ``packed``, or the means of its groups."""
    if "bits" in kept:
        bits = np.frombuffer(base64.b64decode(kept["bits"]), dtype=np.uint8)
        return np.unpackbits(bits, count=kept["count"]).astype(np.float64)
    return np.frombuffer(base64.b64decode(kept["float32"]), dtype="<f4").astype(np.float64)


def table(runs: Sequence[Mapping[str, Any]], values: Sequence[float], count: int) -> Floats | None:
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


def _text(values: NDArray[Any]) -> str:
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
