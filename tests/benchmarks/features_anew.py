"""Compute the features of a measured benchmark anew, as its study file says, and keep its values.

    python tests/benchmarks/features_anew.py digits_mlp --out studies/benchmarks/digits_mlp.parquet

For benchmarks whose trainings took long and whose spectra an earlier version computed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bo_act.benchmark.parquet import open_benchmark, save
from bo_act.specs.files import read_study
from bo_act.tasks.task import Task


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="of the benchmark and its study")
    parser.add_argument("--root", type=Path, help="folder of the data, if it is not the study's")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    changes = {} if options.root is None else {"data.root": str(options.root)}
    task = Task.load(read_study(options.name, changes))
    benchmark = open_benchmark(options.name)
    features = task.features(workers=options.workers)
    save(replace(benchmark, features=features), options.out)
    fim = features.blocks["fim_null"]
    print(f"{options.name}: null shares by layer {fim.values[fim.present].mean(0).round(3)}")


if __name__ == "__main__":
    main()
