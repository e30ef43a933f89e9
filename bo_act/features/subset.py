"""Which functions of a large space get a Fisher spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bo_act.features.table import Block


def spread(outputs: Block, count: int, *, include: Sequence[int]) -> NDArray[np.int64]:
    """Choose functions that have output features.

    Args:
        outputs: (N, k) output features.
        count: how many functions to choose.
        include: indices that are chosen in any case.

    Returns:
        Ascending indices, ``count`` of them or all that there are.
    """
    present = np.flatnonzero(outputs.present)
    first = [index for index in present.tolist() if index not in set(include)]
    kept = [index for index in include if outputs.present[index]]
    return np.array(sorted([*kept, *first][: max(count, len(kept))]), dtype=np.int64)
