"""What each test example had of a training, small enough to be kept in the study.

The mean over the examples is the metric. Right and wrong is a bit an example; other values are
float32, and of large test sets means of random groups, whose spread says as much of the mean's.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MOST = 4_096  # numbers of a training: 22 kB of text

KEY = "examples"
"""Where a run's record has them."""


def packed(values: NDArray[Any]) -> dict[str, Any] | None:
    """Return (N,) values of examples, bool or numbers, as JSON can hold them.

    Returns:
        None where there are fewer than two, or one is not finite.
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
    """Return what ``packed`` was given, (N,), or the means of its groups."""
    if "bits" in kept:
        bits = np.frombuffer(base64.b64decode(kept["bits"]), dtype=np.uint8)
        return np.unpackbits(bits, count=kept["count"]).astype(np.float64)
    return np.frombuffer(base64.b64decode(kept["float32"]), dtype="<f4").astype(np.float64)


def table(runs: Sequence[Mapping[str, Any]], values: Sequence[float], count: int) -> Floats | None:
    """Return the examples of S runs, (S, N); None where they are not known of each run.

    Args:
        runs: records; one that diverged has the same value for every example.
        values: of the S runs, the means.
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
    # The same groups in every training, at random: neighbours in a file are often alike.
    order = np.random.default_rng(0).permutation(len(values))
    size = -(-len(values) // _MOST)
    means = np.array([part.mean() for part in np.array_split(values[order], len(values) // size)])
    # Some groups have one example more.
    return np.asarray(means + (values.mean() - means.mean()))
