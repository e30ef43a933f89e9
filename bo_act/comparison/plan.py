"""ComparisonPlan: a comparison, from a file or from options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from bo_act.comparison.replay import Told
from bo_act.errors import SpecError
from bo_act.search.method import METHODS, MethodSpec
from bo_act.specs.base import Count, PositiveInt, Seed, Spec
from bo_act.specs.files import read_spec


class ComparisonPlan(Spec):
    """A comparison.

    Attributes:
        benchmarks: names or paths.
        methods: names of built-in methods, of those in ``method``, or ``[NAME=]FILE.py:FUNCTION``
            of a function that makes a sampler, from the working folder.
        method: custom methods, by name.
        evaluations: of each search, the initial design included.
        seeds: searches of each method on each benchmark.
        first_seed: of consecutive seeds.
        at: after how many evaluations methods are compared; none: in the end.
        told: whether searches observe the mean of a function's runs, or one run (``run``).
        initial: random functions after the baselines.
        warm_start: benchmarks to learn from, names or paths.
    """

    benchmarks: tuple[str, ...] = ("digits_mlp", "fashion_mnist_small_cnn", "digits_small_cnn")
    methods: tuple[str, ...] = ("default", "published", "random")
    method: dict[str, MethodSpec] = Field(default_factory=dict)
    evaluations: PositiveInt = 100
    seeds: PositiveInt = 30
    first_seed: Seed = 0
    at: PositiveInt | None = None
    told: Told = "mean"
    initial: Count = 2
    warm_start: tuple[str, ...] = ()

    def chosen(self) -> list[str | tuple[str, MethodSpec]]:
        """Return the methods for ``compare``, custom ones last."""
        named: list[str | tuple[str, MethodSpec]] = [
            (name, self.method[name]) if name in self.method else name for name in self.methods
        ]
        return named + [(name, m) for name, m in self.method.items() if name not in self.methods]


def read_plan(path: Path | None, changes: dict[str, Any]) -> ComparisonPlan:
    """Read a comparison file, if there is one, and apply options.

    Raises:
        SpecError: the file is not a comparison, or gives a built-in method's name to another.
    """
    plan = ComparisonPlan() if path is None else read_spec(path, ComparisonPlan)
    for name in plan.method:
        if name in METHODS:
            raise SpecError(f"{path}: method.{name}: a built-in method has that name; rename yours")
    return plan.model_copy(
        update={k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    )
