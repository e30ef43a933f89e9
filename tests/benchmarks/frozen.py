"""What a change of the code's order must leave as it is: proposals, features, and what is printed.

    python tests/benchmarks/frozen.py --out before.json      # two minutes; then change the code
    python tests/benchmarks/frozen.py --against before.json  # names what is no longer the same

Proposals of every method on a measured benchmark; those of searches over several activations, other
parameters, items and spaces that are not listed, with what ``why`` and the stopping rule say of
them; hashes of embeddings and features; and the JSON of ``run``, ``best``, ``status``, ``why`` and
``compare``, but for times and paths. Numbers may differ on another machine in their last digits, so
that the file is made where it is compared.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from botorch.acquisition.analytic import LogExpectedImprovement
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from torch import nn

from bo_act import ActivationSampler, EmbeddingSampler, improvement_left, why
from bo_act.activations.operators import OPERATORS
from bo_act.benchmark.parquet import open_benchmark
from bo_act.comparison.job import embed
from bo_act.comparison.replay import initial_design, replay
from bo_act.features.compute import compute_features
from bo_act.search.method import METHODS
from bo_act.spaces.costs import costs_of
from bo_act.spaces.space import load_space
from bo_act.specs import AcquisitionSpec, FeaturesSpec, StrategySpec, SurrogateSpec
from bo_act.study.sampling.methods import make_method_sampler, make_strategy

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


OTHERS = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "kind": CategoricalDistribution(("sgd", "adam", "lion")),
    "depth": IntDistribution(1, 9, step=2),
}
BOTH = ("stage1", "stage2")


def samplers() -> dict[str, ActivationSampler]:
    """Return samplers of all kinds of searches."""
    classic, large = load_space("classic"), load_space("six_operators")
    points = np.random.default_rng(0).uniform(size=(300, 3))

    def of(name: str, **options: Any) -> ActivationSampler:
        return ActivationSampler(classic, acquisition=AcquisitionSpec(name=name), seed=5, **options)

    return {
        "functions": of("ucb"),
        "functions by evolution": of(
            "ucb", strategy=make_strategy(StrategySpec(name="evolution"), classic)
        ),
        "parameters": of("ucb", parameters=OTHERS, defaults={"rate": 0.01}),
        "parameters from trials": of("log_ei"),
        "parameters by a forest": of(
            "log_ei", parameters=OTHERS, surrogate=SurrogateSpec(name="forest"), initial=4
        ),
        "parameters by thompson": of("thompson", parameters=OTHERS),
        "parameters by a delegate": of("ucb", delegate=optuna.samplers.TPESampler(seed=1)),
        "parameters by an acquisition of one's own": ActivationSampler(
            classic, acquisition=LogExpectedImprovement, parameters=OTHERS, seed=6
        ),
        "two activations": of("log_nei", activations=BOTH),
        "two activations and parameters": of(
            "max_value_entropy", activations=BOTH, parameters=OTHERS
        ),
        "trees": ActivationSampler(large, seed=7, baselines=("relu(x)", "tanh(x)")),
        "trees and parameters": ActivationSampler(large, parameters=OTHERS, seed=8),
        "items": EmbeddingSampler(points, seed=9),
        "two items and parameters": EmbeddingSampler(points, names=BOTH, parameters=OTHERS, seed=9),
    }


def searches() -> dict[str, Any]:
    """Return what searches of all kinds propose, and what is said of them."""
    found: dict[str, Any] = {}
    for batch in (1, 3):
        for name, sampler in samplers().items():
            found[f"{name}, {batch} at a time"] = searched(name, sampler, batch)
            print(f"{name}, {batch} at a time", file=sys.stderr)
    return found


def searched(name: str, sampler: ActivationSampler, batch: int) -> dict[str, Any]:
    """Run one search, some trials at a time; some fail, diverge or are pruned."""
    study = optuna.create_study(
        direction="minimize" if "two" in name else "maximize", sampler=sampler
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(sampler, EmbeddingSampler):
            study.enqueue_trial(dict.fromkeys(sampler.parameters.slots, 7))
        else:
            one = sampler.activations == ("",)
            sampler.space.enqueue(study, "elu(x)" if one else dict.fromkeys(BOTH, "elu(x)"))
        while len(study.trials) < 24:
            for trial, value in [asked(study, sampler, name) for _ in range(batch)]:
                if trial.number % 7 == 4:
                    trial.report(value, 0)
                    study.tell(trial, state=TrialState.PRUNED)
                elif trial.number % 9 == 5:
                    study.tell(trial, state=TrialState.FAIL)
                else:
                    study.tell(trial, np.inf if trial.number % 11 == 6 else value)
    left = improvement_left(study, sampler)
    said: Any = None
    if "forest" not in name:
        said = lasting(why(study, sampler, 22).as_json())
    return {
        "trials": [{**trial.params, "by": trial.user_attrs["proposal"]} for trial in study.trials],
        "improvement": left,
        "why": said,
    }


def asked(study: optuna.Study, sampler: ActivationSampler, name: str) -> tuple[optuna.Trial, float]:
    """Ask for a trial, and make up its value."""
    trial = study.ask()
    value = 0.0
    for place, activation in enumerate(sampler.activations):
        if isinstance(sampler, EmbeddingSampler):
            point = sampler.embedding.points[sampler.suggest(trial, activation)]
            value += (-1) ** place * float(np.sin(4 * point).sum())
        else:
            module = sampler.space.suggest(trial, activation)
            with torch.no_grad():
                y = module(torch.linspace(-3, 3, 7, dtype=torch.float64)).tolist()
            value += (-1) ** place * (math.tanh(y[1]) + math.tanh(y[4]) - 0.2 * abs(y[5]))
    if "parameters" in name:
        rate = trial.suggest_float("rate", 1e-4, 1.0, log=True)
        kind = trial.suggest_categorical("kind", OTHERS["kind"].choices)
        depth = trial.suggest_int("depth", 1, 9, step=2)
        value -= 0.1 * (math.log10(rate) + 2) ** 2 + 0.2 * (kind == "adam") + 0.01 * depth
    return trial, value


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
    parser.add_argument("--searches", action="store_true", help="nothing but searches")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    record: dict[str, Any] = {"searches": json.loads(json.dumps(searches()))}
    if not options.searches:
        record |= {"hashes": hashes(), "printed": printed(), "proposals": proposals()}
    if options.out is not None:
        options.out.write_text(json.dumps(record, indent=1))
    if options.against is not None:
        before = json.loads(options.against.read_text())
        found = differences({name: before.get(name) for name in record}, record)
        print("\n".join(found) if found else "nothing changed")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
