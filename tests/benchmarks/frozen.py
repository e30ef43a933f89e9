"""What a change of the code's order must leave as it is: proposals, features, and what is printed.

    python tests/benchmarks/frozen.py --out before.json      # two minutes; then change the code
    python tests/benchmarks/frozen.py --against before.json  # names what is no longer the same

Proposals of every method on a measured benchmark, hashes of embeddings and features, and the JSON
of ``run``, ``best``, ``status``, ``why`` and ``compare``, but for times and paths. Numbers may
differ on another machine in their last digits, so that the file is made where it is compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

from bo_act.activations.costs import costs_of
from bo_act.activations.operators import OPERATORS
from bo_act.activations.space import load_space
from bo_act.benchmark.parquet import open_benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, replay
from bo_act.features.compute import compute_features
from bo_act.search.method import METHODS
from bo_act.specs import FeaturesSpec
from bo_act.study.sampling.methods import make_method_sampler

BENCHMARKS = ("digits_mlp", "digits_small_cnn", "fashion_mnist_small_cnn", "fashion_mlp_adam")
LONG, SHORT = 110, 40  # evaluations, of which ten are the design

STUDY = """
name = "frozen"
space = "classic"
trials = 8
[model]
name = "mlp"
options = { widths = [8] }
[data]
name = "digits"
train = 200
validation = 100
[training]
epochs = 2
threads = 1
device = "cpu"
[features]
batch_size = 32
quantiles = 16
[confirm]
top = 1
seeds = 2
"""
COMMANDS: Mapping[str, list[str]] = {
    "run": ["run", "frozen.toml", "--quiet", "--json"],
    "best": ["best", "frozen.toml", "--json"],
    "status": ["status", "frozen.toml", "--json"],
    "why": ["why", "frozen.toml", "7", "--json"],
    "compare": [
        *("compare", "-b", "fashion_mlp_adam", "-m", "random", "-m", "evolution"),
        *("--evaluations", "20", "--seeds", "2", "--json"),
    ],
}
VOLATILE = (
    "seconds", "time", "started", "ended", "host", "pid", "path", "folder", "code", "version",
    "duration", "rate", "hour", "commit", "left", "report", "storage", "environment",
    "date", "minute",
)  # fmt: skip


def proposals() -> dict[str, list[int]]:
    """Return what every method evaluates on a benchmark."""
    benchmark = open_benchmark("fashion_mlp_adam")
    costs = costs_of(benchmark.space.catalogue, dict.fromkeys(OPERATORS, 1.0))
    found = {}
    for name, method in METHODS.items():
        embedding = None if method.optuna else embed(benchmark, method)
        sampler = make_method_sampler(method, benchmark.space, embedding, costs=costs, seed=3)
        steps = replay(
            benchmark,
            sampler,
            evaluations=LONG if name == "default" else SHORT,
            design=initial_design(benchmark, seed=3),
        )
        found[name] = [step.index for step in steps]
        print(name, file=sys.stderr)
    return found


def hashes() -> dict[str, str]:
    """Return hashes of embeddings and feature tables."""
    found = {
        f"{name} by {method}": embed(open_benchmark(name), METHODS[method]).hash
        for name in BENCHMARKS
        for method in ("default", "outputs")
    }
    torch.manual_seed(0)
    images = torch.randn(16, 1, 8, 8)
    labels = torch.arange(16) % 4

    def network(activation: nn.Module) -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 4))

    table = compute_features(
        load_space("classic"),
        network=network,
        inputs=images,
        targets=labels,
        spec=FeaturesSpec(quantiles=16),
    )
    return found | {"features of a small network": table.hash}


def printed() -> dict[str, Any]:
    """Return the JSON of commands, without what is another each time."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "frozen.toml").write_text(STUDY)
        environment = {**os.environ, "BO_ACT_CACHE_DIR": str(Path(folder, "cache"))}
        for name, arguments in COMMANDS.items():
            done = subprocess.run(
                [sys.executable, "-m", "bo_act.cli", *arguments],
                cwd=folder, env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            found[name] = lasting(json.loads(done.stdout))
    return found


def lasting(value: Any) -> Any:
    """Leave out times, places and versions."""
    if isinstance(value, dict):
        return {
            key: lasting(inner)
            for key, inner in value.items()
            if not any(word in key.lower() for word in VOLATILE)
        }
    return [lasting(inner) for inner in value] if isinstance(value, list) else value


def differences(before: Any, now: Any, place: str = "") -> list[str]:
    """Name the places at which two records differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        return [
            line
            for key in keys
            for line in differences(before.get(key), now.get(key), f"{place}/{key}")
        ]
    return [] if before == now else [f"{place}: {str(before)[:80]} -> {str(now)[:80]}"]


def main() -> None:
    """Record, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--against", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    record = {"hashes": hashes(), "printed": printed(), "proposals": proposals()}
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1))
    if options.against is not None:
        found = differences(json.loads(options.against.read_text()), record)
        print("\n".join(found) if found else "nothing changed")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
