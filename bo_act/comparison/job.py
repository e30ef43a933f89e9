"""One search of a comparison, and its replay in a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from optuna.samplers import BaseSampler

from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.sources import as_source
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.own_sampler import OwnSampler
from bo_act.comparison.replay import TOLD_RUN, Told, initial_design, replay
from bo_act.search.embedding.embedding import Embedding
from bo_act.search.embedding.factory import make_embedder
from bo_act.search.method import MethodSpec
from bo_act.search.warm_start import WarmStart, make_warm_start
from bo_act.spaces.costs import costs_of
from bo_act.specs.base import derived_seed
from bo_act.study.sampling.methods import make_method_sampler


@dataclass(frozen=True)
class ReplayRun:
    """One search: method, benchmark and seed."""

    benchmark: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method} on {self.benchmark} with seed {self.seed}"


@dataclass(frozen=True)
class CompareJob:
    """Replays searches.

    Attributes:
        methods: by name.
        evaluations: of each search, the initial design included.
        initial: random functions after the baselines.
        sources: benchmark → benchmarks to learn from.
        times: of operators, if a method needs costs.
        told: with ``run``, a search with seed s observes run s modulo the number of runs.
    """

    methods: Mapping[str, MethodSpec | OwnSampler]
    evaluations: int
    initial: int
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    times: Mapping[str, float] | None = None
    told: Told = "mean"

    def __call__(self, _: torch.device) -> Callable[[ReplayRun], dict[str, Any]]:
        """Return the replay of a run; searches always run on the CPU."""
        return _Replayer(self)


class _Replayer:
    def __init__(self, job: CompareJob) -> None:
        self.job = job
        self.benchmarks: dict[str, Benchmark] = {}
        self.embeddings: dict[str, Embedding] = {}
        self.warm: dict[str, WarmStart] = {}

    def __call__(self, run: ReplayRun) -> dict[str, Any]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        benchmark = self._benchmark(run.benchmark)
        observed = {}
        if self.job.told == "run":
            observed = {TOLD_RUN: run.seed % benchmark.seeds}
            benchmark = benchmark.of_runs([observed[TOLD_RUN]])
        method = self.job.methods[run.method]
        own = method if isinstance(method, OwnSampler) else None
        spec = MethodSpec() if isinstance(method, OwnSampler) else method
        warm = self._warm_start(run, spec)
        cold = warm is None or spec.baselines
        design = initial_design(
            benchmark,
            seed=run.seed,
            initial=self.job.initial if cold else 0,
            first=() if warm is None else warm.best,
            baselines=cold,
        )
        with own.failing(run) if own else nullcontext():
            sampler = own.make(benchmark, seed=run.seed) if own else self._sampler(run, spec, warm)
            steps = replay(benchmark, sampler, evaluations=self.job.evaluations, design=design)
        columns = {name: [asdict(step)[name] for step in steps] for name in asdict(steps[0])}
        columns["suggest_seconds"] = [s and float(f"{s:.4g}") for s in columns["suggest_seconds"]]
        labels = {"benchmark": run.benchmark, "method": run.method, "seed": run.seed, **observed}
        return {**labels, **columns}

    def _sampler(self, run: ReplayRun, method: MethodSpec, warm: WarmStart | None) -> BaseSampler:
        benchmark = self._benchmark(run.benchmark)
        embedding = None
        if method.optuna is None:
            embedding = self._plain(run, method)
            embedding = embedding if warm is None else warm.enrich(embedding)
        costs = None
        if method.acquisition.needs_costs and self.job.times is not None:
            costs = costs_of(benchmark.space.catalogue, self.job.times)
        return make_method_sampler(method, benchmark.space, embedding, costs=costs, seed=run.seed)

    def _benchmark(self, name: str) -> Benchmark:
        if name not in self.benchmarks:
            self.benchmarks[name] = open_benchmark(name)
        return self.benchmarks[name]

    def _warm_start(self, run: ReplayRun, method: MethodSpec) -> WarmStart | None:
        others = self.job.sources.get(run.benchmark, ())
        if not others or not method.warm_start:
            return None
        method = with_own_layout(method, run.seed)
        key = f"{run.benchmark} {method.fim} {method.embedding!r}"
        if key not in self.warm:
            target = self._benchmark(run.benchmark)
            sources = [as_source(self._benchmark(name), target.space) for name in others]
            self.warm[key] = make_warm_start(sources, self._plain(run, method))
        return self.warm[key]

    def _plain(self, run: ReplayRun, method: MethodSpec) -> Embedding:
        """Fit an embedding once for all seeds, or, if it is random, once per seed."""
        method = with_own_layout(method, run.seed)
        key = f"{run.benchmark} {method.fim} {method.embedding!r}"
        if key not in self.embeddings:
            self.embeddings[key] = embed(self._benchmark(run.benchmark), method)
        return self.embeddings[key]


def with_own_layout(method: MethodSpec, seed: int) -> MethodSpec:
    """Return a method with a random embedding by the search's seed.

    With one layout for all, intervals would miss its randomness.
    """
    if method.embedding.name != "umap":
        return method
    spec = method.embedding
    mixed = spec.model_copy(update={"seed": derived_seed(spec.seed, seed)})
    return method.model_copy(update={"embedding": mixed})


def embed(benchmark: Benchmark, method: MethodSpec) -> Embedding:
    """Return the embedding of a benchmark's measured functions."""
    features = benchmark.features
    if not method.fim:
        features = features.without("fim", "fim_null")
    embedder = make_embedder(method.embedding, benchmark.space.catalogue)
    return embedder.fit(features).restricted(benchmark.measured)
