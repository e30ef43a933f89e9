"""Benchmarks as sources of a warm start."""

from __future__ import annotations

import numpy as np

from bo_act.activations.space import Space
from bo_act.benchmark.table import Benchmark
from bo_act.errors import ExpressionError
from bo_act.search.warm_start import Source


def as_source(benchmark: Benchmark, space: Space) -> Source:
    """Return what a benchmark says of the functions of a space.

    Functions are matched by what they compute, so the benchmark's space may be another one.

    Raises:
        SearchError: it has no function of the space.
    """
    values = np.full(len(space.catalogue), np.nan)
    measured = np.flatnonzero(benchmark.measured)
    if benchmark.space.catalogue.hash == space.catalogue.hash:
        values[measured] = benchmark.values[measured]
        return Source(benchmark.name, values)
    for index in measured:
        try:
            ours = space.catalogue.index(benchmark.space.catalogue.expression(int(index)))
        except ExpressionError:
            continue
        values[ours] = benchmark.values[index]
    return Source(benchmark.name, values)
