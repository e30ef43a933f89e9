"""Functions with learnt scales beside the plain ones and PReLU, on two small tasks.

Each is trained with the same seeds by the recipe of a shipped study; weight decay spares norms,
biases and scales in all of them. Differences to the plain function are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import bo_act
from bo_act.specs.base import derived_seed
from bo_act.specs.files import read_study
from bo_act.statistics import mean_interval, paired
from bo_act.tasks.task import Task
from bo_act.training.evaluation import measure
from bo_act.training.trainer import train

STUDIES = ("digits_small_cnn", "fashion_mnist_small_cnn")
FUNCTIONS = ("relu(x)", "swish(x)", "mul(sigmoid(x),erf(x))", "max(x,tanh(x))")
VARIANTS = {
    "plain": {},
    "layer": {"learnable": "layer"},
    "channel": {"learnable": "channel"},
    "channel, operators": {"learnable": "channel", "scale_operators": True},
}


class LazyPReLU(nn.PReLU):
    """PReLU with as many weights as the first input has channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.num_parameters != x.shape[1]:
            self.__init__(x.shape[1])
        return super().forward(x)


def trained(task: Task, make: Callable[[], nn.Module], seed: int, test) -> float:
    """Train a network and return its accuracy on the test set, in percent."""
    network = task.network(seed=seed)(make)
    with torch.no_grad():
        network.eval()(task.data.train.take(torch.arange(2))[0])
    train(network, task.data, task.spec.training, seed=derived_seed(seed, 1_000_003))
    return 100 * measure(network, test, batch_size=1024, device="cpu")[0]


def main() -> None:
    """Measure all cases, gone on with from the file, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--root", help="folder of Fashion-MNIST's files")
    parser.add_argument("--out", type=Path, default=Path("runs/learnable.json"))
    options = parser.parse_args()
    os.nice(10)
    kept = json.loads(options.out.read_text()) if options.out.exists() else {}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name in STUDIES:
        spec = read_study(name)
        data = {"root": Path(options.root)} if options.root and name.startswith("fashion") else {}
        recipe = {"decay": "matrices", "device": "cpu"}
        task = Task.load(
            spec.model_copy(
                update={
                    "data": spec.data.model_copy(update=data),
                    "training": spec.training.model_copy(update=recipe),
                }
            )
        )
        test = task.data.load_test()
        cases: dict[str, Callable[[], nn.Module]] = {
            f"{function} | {variant}": bo_act.Activation(function, **given)
            for function in FUNCTIONS
            for variant, given in VARIANTS.items()
        }
        cases |= {"PReLU | layer": nn.PReLU, "PReLU | channel": LazyPReLU}
        for seed in range(20_000, 20_000 + options.seeds):
            for case, make in cases.items():
                key = f"{name} | {case} | {seed}"
                if key not in kept:
                    kept[key] = trained(task, make, seed, test)
                    options.out.write_text(json.dumps(kept, indent=1))
        table(name, list(cases), kept, options.seeds)


def table(name: str, cases: list[str], kept: dict[str, float], seeds: int) -> None:
    """Print a table of one task: test accuracy, and the paired difference to the plain function."""
    values = {
        case: [kept[f"{name} | {case} | {20_000 + k}"] for k in range(seeds)] for case in cases
    }
    print(f"\n{name}\n\n| function | scales | test accuracy | minus plain | minus ReLU |")
    print("|---|---|---|---|---|")
    for case, mine in values.items():
        function, variant = case.split(" | ")
        mean, (low, high) = mean_interval(mine)
        plain = values.get(f"{function} | plain")
        cells = [
            "" if other is None or other is mine else shown(paired(mine, other))
            for other in (plain, values["relu(x) | plain"])
        ]
        print(
            f"| {function} | {variant} | {mean:.2f} [{low:.2f}, {high:.2f}] | {' | '.join(cells)} |"
        )


def shown(found) -> str:
    """Return a difference and its interval."""
    low, high = found.interval
    return f"{found.mean:+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
