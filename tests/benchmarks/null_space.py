"""Which eigenvalues are null, in float32 and in float64, for the networks of the benchmarks.

    python tests/benchmarks/null_space.py --root FOLDER        # two minutes

Prints the table of docs/results/spectra.md: mean null shares of 200 functions, spread out over the
space, and how far float32 is from float64.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from bo_act.specs.files import read_study
from bo_act.tasks.task import Task

STUDIES = ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn", "fashion_mlp_adam")


def null_shares(name: str, precision: str, functions: int, root: Path | None) -> np.ndarray:
    """Return the null shares (N, L) of a study's network; NaN where there are none."""
    changes = {"features.precision": precision, "features.subset": str(functions)}
    if root is not None and name.startswith("fashion"):
        changes["data.root"] = str(root)
    block = Task.load(read_study(name, changes)).features().blocks["fim_null"]
    return np.where(block.present[:, None], block.values, np.nan)


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, default=200)
    parser.add_argument("--studies", nargs="+", default=list(STUDIES))
    parser.add_argument("--root", type=Path, help="folder of Fashion-MNIST")
    options = parser.parse_args()
    print(
        "| network | float64, by layer | float32, by layer | largest difference | "
        "more than 0.02 apart | the head's least share |\n|---|---|---|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["BO_ACT_CACHE_DIR"] = folder
        for name in options.studies:
            both = [
                null_shares(name, precision, options.functions, options.root)
                for precision in ("float64", "float32")
            ]
            known = np.isfinite(both).all(axis=(0, 2))  # what overflows does so in float32 first
            both = [one[known] for one in both]
            apart = np.abs(both[0] - both[1])
            means = [", ".join(f"{share:.2f}" for share in one.mean(axis=0)) for one in both]
            least = min(one[:, -1].min() for one in both)
            print(
                f"| `{name}` | {means[0]} | {means[1]} | {apart.max():.3f} | "
                f"{(apart > 0.02).mean():.1%} of rows | {least:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
