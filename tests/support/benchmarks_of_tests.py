"""A benchmark with known values, for the tests."""

from __future__ import annotations

import numpy as np

from bo_act.benchmark.table import MEASURED, Benchmark
from bo_act.features.compute import compute_features
from bo_act.spaces.space import Space


def random_benchmark(space: Space, *, runs: int = 2, epochs: int = 4, seed: int = 0) -> Benchmark:
    """Every function but the last one measured, with values in no relation to its features."""
    count = len(space.catalogue)
    generator = np.random.default_rng(seed)
    values = {metric: generator.uniform(0.1, 1.0, (count, runs)) for metric in MEASURED}
    for metric in MEASURED:
        values[metric][-1] = np.nan
    curves = generator.uniform(0.1, 1.0, (count, runs, epochs)).astype(np.float32)
    curves[:, :, -1] = values["validation_value"]
    diverged = generator.random((count, runs)) < 0.2
    curves[diverged, 2:] = np.nan
    return Benchmark(
        "random", space, values, diverged, 0.1, compute_features(space), curves, {"made": "up"}
    )
