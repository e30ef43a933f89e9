"""Comparing search methods from the same starts on the same benchmarks, with many seeds."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from bo_act.benchmark.journal import RunJournal
from bo_act.benchmark.parquet import open_benchmark
from bo_act.benchmark.sources import same_runs, same_task
from bo_act.benchmark.table import Benchmark
from bo_act.comparison.code import code_digest
from bo_act.comparison.fingerprint import NotToldApartError, fingerprint
from bo_act.comparison.job import CompareJob, ReplayRun
from bo_act.comparison.methods import Method, read_methods
from bo_act.comparison.metrics import summary, table
from bo_act.comparison.own_sampler import OwnSampler
from bo_act.comparison.replay import TOLD_RUN, Step, Told
from bo_act.errors import BenchmarkError
from bo_act.events import Events
from bo_act.html import box
from bo_act.html import table as html_table
from bo_act.io import atomic_write, digest, one_line, reason, replacing
from bo_act.plot_style import save
from bo_act.process_pool import compute_in_processes
from bo_act.search.method import MethodSpec
from bo_act.spaces.costs import operator_times
from bo_act.specs.base import MOST_EVALUATIONS, MOST_SEEDS, MOST_WORKERS, SEEDS, whole
from bo_act.statistics import shown_p

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Comparison:
    """The runs of a comparison, and their summary.

    Attributes:
        steps: one row for each evaluation: benchmark, method, seed, evaluation, index,
            activation, value, test, suggest_seconds, pruned; and, with ``told="run"``, told_run,
            the observed run.
        benchmarks: name → benchmark.
        summary: as ``bo-act compare --json`` prints it.

    Examples:
        >>> import bo_act
        >>> comparison = bo_act.compare(["digits_mlp"], ["random"], seeds=2, evaluations=20)
        >>> comparison.table.columns[:2].tolist()
        ['benchmark', 'method']
    """

    steps: DataFrame = field(repr=False)
    benchmarks: Mapping[str, Benchmark] = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)

    @property
    def unit(self) -> str:
        """Unit of regrets, as text."""
        of = {name: benchmark.metric.differences for name, benchmark in self.benchmarks.items()}
        if len(set(of.values())) == 1:
            return next(iter(of.values()))
        return "; ".join(f"{unit} on {name}" for name, unit in of.items())

    @cached_property
    def table(self) -> DataFrame:
        """One row for each method and benchmark."""
        return table(self.summary)

    def _repr_html_(self) -> str:
        """Show the table and the pairwise comparisons in a notebook."""
        frame = self.table
        rows = [
            [f"{v:.3g}" if isinstance(v, float) else v for v in row]
            for row in frame.astype(object).where(frame.notna(), "").itertuples(index=False)
        ]
        numbers = frozenset(range(2, len(frame.columns)))
        said = [
            f"P({pair['a']} beats {pair['b']}) = {pair['probability']:.2f}, "
            f"p {shown_p(pair['p_holm'])}"
            for pair in self.summary["comparisons"]
            if pair["probability"] is not None
        ]
        return box(
            "Comparison",
            f"Regret after so many evaluations, in {self.unit}; compared at "
            f"{self.summary['compared_at']}, p adjusted by Holm's method.",
            html_table(list(frame.columns), rows, numbers=numbers),
            *said,
        )

    def figures(self, *, width: float | None = None) -> dict[str, Figure]:
        """Draw regret, ranks and suggestion times over evaluations: name → matplotlib figure.

        Args:
            width: of the figure in inches, with stacked panels and the legend on top, as for a
                column of a paper; default: panels side by side.
        """
        from bo_act.comparison import figures

        return {
            "regret": figures.regret_curves(self.steps, self.benchmarks, width=width),
            "ranks": figures.rank_curves(self.steps, self.benchmarks, width=width),
            "suggestion_times": figures.suggestion_times(self.steps, width=width),
        }

    def save(self, folder: Path) -> list[Path]:
        """Write ``steps.parquet``, ``summary.json`` and the figures; return the files.

        Raises:
            BoActError: they cannot be written.
        """
        files = [folder / "steps.parquet", folder / "summary.json"]
        try:
            with replacing(files[0]) as temporary:
                self.steps.to_parquet(temporary, index=False, compression="zstd")
            atomic_write(files[1], json.dumps(self.summary, indent=2, allow_nan=False) + "\n")
            for name, figure in self.figures().items():
                files += [save(figure, folder / f"{name}.{kind}") for kind in ("png", "svg")]
        except OSError as error:
            raise BenchmarkError(f"cannot write to {folder}: {reason(error)}") from error
        return files


def compare(
    benchmarks: Sequence[str],
    methods: Sequence[str | tuple[str, Method]] | Mapping[str, Method] = (
        "default",
        "published",
        "random",
    ),
    *,
    evaluations: int = 100,
    seeds: int = 30,
    first_seed: int = 0,
    at: int | None = None,
    told: Told = "mean",
    initial: int = 2,
    warm_start: Sequence[str] = (),
    workers: int = 1,
    out: Path | None = None,
    events: Events | None = None,
) -> Comparison:
    """Replay searches and compare them.

    With the same seed every method starts from the same functions. Finished runs are saved in
    ``out``: the same call resumes, and more seeds, methods or benchmarks extend the comparison.

    Args:
        benchmarks: names or paths, see ``open_benchmark``.
        methods: by the names in tables and figures. Each is a name in ``METHODS``, a
            ``MethodSpec``, or your own sampler: a function ``make_sampler(space, features, seed)``
            that returns an Optuna sampler and takes any of these three by name; or
            ``"FILE.py:FUNCTION"``. A sequence holds (name, method), or only names and files.
        evaluations: of each search, the initial design included.
        seeds: searches of each method on each benchmark.
        first_seed: of consecutive seeds.
        at: number of evaluations after which to compare methods; default: all.
        told: ``mean``: searches observe the mean of a function's runs, and are judged by it.
            ``run``: as in a real study, a search observes one run of each function (its seed
            modulo the number of runs), and its choice is judged by the mean of the other runs,
            without selection bias.
        initial: random functions after the baselines of the space.
        warm_start: benchmarks to learn from; those of the searched task are excluded, whatever
            their names (see ``same_task``). The five best functions over all of them are evaluated
            first, instead of baselines and random functions, and the ranks in them are a block of
            the embedding.
        workers: parallel processes, one thread each. Samplers that cannot be pickled (lambdas,
            closures, functions of a notebook) run first, in this process.
        out: folder for the runs; default: they are not saved. Saved runs of your own sampler count
            as long as its code, including everything it uses, is the same.
        events: called as it proceeds.

    Raises:
        BenchmarkError: a name is unknown, a number is invalid, two methods have the same name, two
            benchmarks have the same runs, the only source is the task itself, your own sampler
            fails, or ``out`` has runs of other code or options.

    Examples:
        >>> import bo_act, optuna
        >>> def make_sampler(seed):
        ...     return optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        >>> comparison = bo_act.compare(
        ...     ["digits_mlp"], {"mine": make_sampler, "random": "random"}, seeds=2, evaluations=15
        ... )
        >>> list(comparison.summary["methods"])
        ['mine', 'random']
    """
    named = read_methods(methods)
    if not benchmarks:
        raise BenchmarkError("expected at least one benchmark, got none")
    whole(evaluations, "evaluations", low=1, high=MOST_EVALUATIONS, error=BenchmarkError)
    whole(seeds, "seeds", low=1, high=MOST_SEEDS, error=BenchmarkError)
    whole(first_seed, "first_seed", high=SEEDS - seeds, error=BenchmarkError)
    if at is not None:
        whole(at, "at", low=1, high=evaluations, error=BenchmarkError)
    whole(workers, "workers", low=1, high=MOST_WORKERS, error=BenchmarkError)
    whole(initial, "initial", error=BenchmarkError)
    if told not in get_args(Told):
        raise BenchmarkError(f"told: expected 'mean' or 'run', got {told!r}")
    opened = {name: open_benchmark(name) for name in dict.fromkeys(benchmarks)}
    events = events or Events()
    runs = [
        ReplayRun(benchmark, method, seed)
        for seed in range(first_seed, first_seed + seeds)
        for method in named
        for benchmark in opened
    ]
    _check_once(opened)
    sources = _distinct({n: opened.get(n) or open_benchmark(n) for n in dict.fromkeys(warm_start)})
    by = {name: _others(name, benchmark, sources) for name, benchmark in opened.items()}
    for name, benchmark in opened.items():
        _check_runs(name, benchmark, evaluations=evaluations, told=told)
    specs = [method for method in named.values() if isinstance(method, MethodSpec)]
    priced = any(spec.acquisition.needs_costs for spec in specs)
    times = operator_times() if priced else None
    job = CompareJob(named, evaluations, initial, by, times, told)
    codes = {name: _code_of(method) for name, method in named.items()}
    if out is not None:
        _warn_of_lost(codes)
    with ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        journal = stack.enter_context(
            RunJournal(
                out / "runs.jsonl",
                {
                    "evaluations": evaluations,
                    "initial": initial,
                    "warm_start": [source.hash[:16] for source in sources.values()],
                    "code": code_digest(),
                    **({} if told == "mean" else {"told": told}),
                },
                key=("benchmark", "benchmark_hash", "method_spec", "seed"),
            )
        )
        keys = {
            run: (run.benchmark, opened[run.benchmark].hash[:16], codes[run.method], run.seed)
            for run in runs
        }
        # Perhaps of another name: a method's name does not matter.
        finished = {run: journal[key] for run, key in keys.items() if key in journal}
        events.runs(len(finished), len(runs), "searches")
        for record in _replayed(job, [run for run in runs if run not in finished], workers):
            run = ReplayRun(record["benchmark"], record["method"], record["seed"])
            _, benchmark_hash, code, _ = keys[run]
            finished[run] = record | {"benchmark_hash": benchmark_hash, "method_spec": code}
            if isinstance(code, str):
                journal.add(finished[run])
            events.runs(len(finished), len(runs), "searches")
        records = [finished[run] | {"method": run.method} for run in runs]
    steps = _frame(records)
    summed = summary(steps, opened, compared_at=at)
    if warm_start:
        summed["told"] = {
            name: {
                "by": list(names),
                "not_by": [source for source in warm_start if source not in names],
            }
            for name, names in by.items()
        }
    return Comparison(steps, opened, summed)


def load_comparison(folder: Path) -> Comparison:
    """Read a comparison that ``Comparison.save`` wrote.

    Raises:
        BenchmarkError: there is none, or its benchmarks changed.
        ContentNotFoundError: a benchmark is missing.
    """
    import pandas as pd

    file = folder / "steps.parquet"
    if not file.is_file():
        raise BenchmarkError(
            f"expected the folder of a comparison with a file steps.parquet, got {str(folder)!r}; "
            f"make one with `bo-act compare --out {folder}`"
        )
    try:
        steps = pd.read_parquet(file)
        names = steps["benchmark"].astype(str)
    except Exception as error:  # Arrow and pandas raise many kinds over damaged files
        raise _unreadable(file, error) from error
    opened = {name: open_benchmark(name) for name in dict.fromkeys(names)}
    summary_file = folder / "summary.json"
    try:
        saved = (
            json.loads(summary_file.read_bytes()) if summary_file.is_file() else {"methods": None}
        )
        before, at = saved["methods"], saved.get("compared_at")
        at = at if at is None else whole(at, "compared_at", low=1, error=BenchmarkError)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(summary_file, error) from error
    try:
        summed = summary(steps, opened, compared_at=at)
    except Exception as error:  # wrong columns or impossible numbers
        raise _unreadable(file, error) from error
    if before is not None and before != _plain(summed)["methods"]:
        raise BenchmarkError(
            f"the benchmarks or bo-act changed since the comparison in {folder} was made; compare "
            "again in another folder"
        )
    return Comparison(steps, opened, summed)


def _unreadable(file: Path, error: Exception) -> BenchmarkError:
    return BenchmarkError(
        f"{file} cannot be read: {one_line(error)}; `bo-act compare --out {file.parent}` with the "
        "same options writes it again from the saved runs"
    )


def _plain(summed: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(summed))


def _replayed(job: CompareJob, runs: Sequence[ReplayRun], workers: int) -> Iterator[dict[str, Any]]:
    portable = (
        {name: method for name, method in job.methods.items() if _travels(method)}
        if workers > 1
        else {}
    )
    shared = [run for run in runs if run.method in portable]
    here = [run for run in runs if run.method not in portable]
    if len(shared) == 1:
        here, shared = list(runs), []
    # In this process first: these are new, and may fail.
    replayer = job(torch.device("cpu"))
    yield from map(replayer, here)
    if shared:
        yield from compute_in_processes(
            replace(job, methods=portable),
            shared,
            device=torch.device("cpu"),
            workers=workers,
            threads=1,
        )


def _travels(method: MethodSpec | OwnSampler) -> bool:
    return isinstance(method, MethodSpec) or method.travels


def _code_of(method: MethodSpec | OwnSampler) -> str | NotToldApartError:
    """Return a hash of everything that decides a method's runs, or why there is none."""
    if isinstance(method, MethodSpec):
        return digest(method.model_dump_json())[:16]
    if method.file is not None:
        return digest(method.file.content + b"\0" + method.name.encode())[:16]
    try:
        return fingerprint(method.given)[:16]
    except NotToldApartError as error:
        return error


def _warn_of_lost(codes: Mapping[str, str | NotToldApartError]) -> None:
    for name, code in codes.items():
        if isinstance(code, NotToldApartError):
            warnings.warn(
                f"runs of {name!r} are not saved, because bo-act cannot tell whether {code} in it "
                "changes; give the method as 'FILE.py:FUNCTION' to save them",
                stacklevel=3,
            )


def _check_once(opened: Mapping[str, Benchmark]) -> None:
    for (name, benchmark), (again, other) in combinations(opened.items(), 2):
        if same_runs(benchmark, other):
            raise BenchmarkError(
                f"the benchmarks {name!r} and {again!r} have the same runs, which would count "
                "twice; leave one of them out"
            )


def _check_runs(name: str, benchmark: Benchmark, *, evaluations: int, told: Told) -> None:
    if told == "run" and benchmark.seeds < 2:
        raise BenchmarkError(
            f"expected benchmarks with several runs per function (searches observe one, the "
            f"others judge), got one run in {name!r}; leave it out, or set told = 'mean'"
        )
    measured = int((benchmark.measured & benchmark.features.blocks["outputs"].present).sum())
    if evaluations > measured:
        more = "measure more, or evaluate fewer" if benchmark.is_part else "evaluate fewer"
        raise BenchmarkError(
            f"{name!r} has only {measured:,} measured functions with features, too few for "
            f"searches of {evaluations:,} evaluations; {more}"
        )


def _distinct(sources: Mapping[str, Benchmark]) -> dict[str, Benchmark]:
    """Remove sources with the runs of an earlier one."""
    distinct: dict[str, Benchmark] = {}
    for name, source in sources.items():
        if not any(same_runs(source, other) for other in distinct.values()):
            distinct[name] = source
    return distinct


def _others(name: str, benchmark: Benchmark, sources: Mapping[str, Benchmark]) -> tuple[str, ...]:
    """Return the sources with other tasks than a benchmark's."""
    others = tuple(other for other, source in sources.items() if not same_task(source, benchmark))
    if sources and not others:
        raise BenchmarkError(
            f"expected benchmarks of other tasks to learn from, got "
            f"{', '.join(map(repr, sources))}, the same task as {name!r}"
        )
    return others


def _frame(records: Sequence[Mapping[str, Any]]) -> DataFrame:
    import pandas as pd

    names = tuple(field.name for field in fields(Step))
    parts = [
        pd.DataFrame(
            {"benchmark": r["benchmark"], "method": r["method"], "seed": r["seed"]}
            | ({TOLD_RUN: r[TOLD_RUN]} if TOLD_RUN in r else {})
            | {name: r[name] for name in names},
            columns=["benchmark", "method", "seed", *([TOLD_RUN] if TOLD_RUN in r else []), *names],
        )
        for r in records
    ]
    unknown = dict.fromkeys(("test", "suggest_seconds"), float)  # None is NaN
    return pd.concat(parts, ignore_index=True).astype(unknown)
