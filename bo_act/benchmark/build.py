"""Building a benchmark: every function of a space trained on a study's task, with several seeds.

Each finished run is a line of ``runs.jsonl``, so that a stopped or killed build resumes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bo_act.activations.expressions import parse
from bo_act.benchmark.journal import RunJournal
from bo_act.benchmark.sources import described
from bo_act.benchmark.table import MEASURED, PART, Benchmark
from bo_act.dependencies.torch_internals import OPTIMIZER_IMPORTS
from bo_act.errors import BenchmarkError, ExpressionError
from bo_act.events import Events
from bo_act.features.table import FeatureTable
from bo_act.process_pool import compute_in_processes, cores_each
from bo_act.specs import StudySpec
from bo_act.specs.base import MOST_SEEDS, MOST_WORKERS, derived_seed, whole
from bo_act.tasks.checks import check_trains
from bo_act.tasks.failures import failure_of, failures_of_runs
from bo_act.tasks.task import Task
from bo_act.training.outcomes import DIVERGED
from bo_act.training.trainer import cpu_threads, pick_device
from bo_act.user_code.failures import USERS, Failure

_FAILURES_IN_A_ROW = 5  # more mean a cause outside the functions
_LARGEST = float(np.finfo(np.float32).max)  # of a benchmark file; errors have no bound


@dataclass(frozen=True)
class Run:
    """One training: which function, and which seed from 0."""

    index: int
    text: str
    seed: int

    def __str__(self) -> str:
        return f"{self.text} with seed {self.seed}"


@dataclass(frozen=True)
class BuildJob:
    """Trains functions as in a study, and evaluates each network on the test set."""

    spec: StudySpec

    def __call__(self, device: torch.device) -> Callable[[Run], dict[str, Any]]:
        """Load the study's task on a device, to train functions."""
        training = self.spec.training.model_copy(update={"device": str(device)})
        task = Task.load(self.spec.model_copy(update={"training": training}))
        return _Trainer(task)


class _Trainer:
    def __init__(self, task: Task) -> None:
        self.task = task
        self.sets = {
            "train": task.data.train,
            "validation": task.data.validation,
            "test": task.data.load_test(),
        }

    def __call__(self, run: Run) -> dict[str, Any]:
        """Train one function; return its record for ``runs.jsonl``, or the ``failure``."""
        try:
            return self._record(run)
        except USERS as error:
            failure = failure_of(error)
            if failure is None:
                raise
            return _failed(run, failure)

    def _record(self, run: Run) -> dict[str, Any]:
        spec = self.task.spec
        with cpu_threads(spec.training.threads):
            network, result = self.task.train(
                parse(run.text), seed=derived_seed(spec.seed, run.seed)
            )
            record: dict[str, Any] = {
                "index": run.index,
                "seed": run.seed,
                "status": result.status,
                "seconds": round(result.seconds, 4),
                "curve": [_short(value) for value in result.curve],
            }
            for name, samples in self.sets.items():
                value, loss = result.value, math.nan
                if result.status != DIVERGED:
                    value, loss = self.task.measure(network, samples)
                record[f"{name}_value"] = _short(value)
                # JSON has no infinity, but outputs may be infinite.
                record[f"{name}_loss"] = _short(loss) if math.isfinite(loss) else None
        return record


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _failed(run: Run, failure: Failure) -> dict[str, Any]:
    return {"activation": run.text, "seed": run.seed, "failure": failure.as_attribute()}


def build_benchmark(
    spec: StudySpec,
    *,
    seeds: int = 3,
    repeat_best: int | None = None,
    functions: int | None = None,
    workers: int = 1,
    folder: Path | None = None,
    name: str | None = None,
    events: Events | None = None,
) -> Benchmark:
    r"""Train every function of a study's space, or resume.

    ``build_order`` shuffles the functions, in the same way for every seed, so that a stopped build
    has some of every kind.

    Args:
        spec: space, model, data, training and features; run r of a function has the seed
            ``spec.seed + r``.
        seeds: runs of each function.
        repeat_best: how many functions get more than one run: the baselines, then the best by the
            first run; default: all.
        functions: how many functions of the order to train; default: all. Fewer give a partial
            benchmark, of these and any other runs in the folder.
        workers: parallel processes. Several share one GPU, since small networks do not fill it;
            with several GPUs they are distributed.
        folder: where ``runs.jsonl`` is; default: ``runs/<study>/benchmark``.
        name: of the benchmark; default: the study's.
        events: called as it proceeds.

    Raises:
        BenchmarkError: the folder has runs of another study, another build is running there, or
            runs failed; the next call repeats those.
        BoActError: the study file or the data are wrong.

    Examples:
        >>> from pathlib import Path
        >>> import bo_act
        >>> lines = ['name = "few"', 'unary = ["tanh", "relu"]', 'schemas = ["unary(x)"]']
        >>> Path("few.toml").write_text("\n".join(lines)) > 0
        True
        >>> options = {"space": "few.toml", "training.epochs": 1, "features.fim": False}
        >>> build_benchmark(bo_act.read_study("quickstart", options), seeds=1).values.shape
        (2,)
    """
    whole(seeds, "seeds", low=1, high=MOST_SEEDS, error=BenchmarkError)
    whole(workers, "workers", low=1, high=MOST_WORKERS, error=BenchmarkError)
    for name_of, count in (("repeat_best", repeat_best), ("functions", functions)):
        if count is not None:
            whole(count, name_of, low=1, error=BenchmarkError)
    if repeat_best is not None and seeds == 1:
        raise BenchmarkError(
            "repeat_best is how many functions get further seeds, and seeds = 1 has none: give "
            "more seeds, or leave it out"
        )
    events = events or Events()
    task = Task.load(spec)
    task.check()
    folder = folder or Path("runs") / spec.name / "benchmark"
    wanted = build_order(task)[:functions]
    repeated = len(wanted) if repeat_best is None else min(repeat_best, len(wanted))
    total = len(wanted) + (seeds - 1) * repeated
    with RunJournal(folder / "runs.jsonl", made_from(task), key=("index", "seed")) as journal:
        # Seed by seed: a build stopped early has each function once.
        if repeated == len(wanted):
            runs = [(index, seed) for seed in range(seeds) for index in wanted]
            _run(task, runs, journal, total=total, workers=workers, events=events)
        else:
            runs = [(index, 0) for index in wanted]
            _run(task, runs, journal, total=total, workers=workers, events=events)
            best = _best(task, journal, wanted)[:repeated]
            runs += [(index, seed) for seed in range(1, seeds) for index in best]
            _run(task, runs, journal, total=total, workers=workers, events=events)
        records = [
            journal[index, seed]
            for index in range(len(task.space.catalogue))
            for seed in range(seeds)
            if (index, seed) in journal
        ]
    features = task.features(events.features, workers=workers)
    return assemble(task, records, features, seeds=seeds, name=name or spec.name)


def _run(
    task: Task,
    runs: Sequence[tuple[int, int]],
    journal: RunJournal,
    *,
    total: int,
    workers: int,
    events: Events,
) -> None:
    """Train what the journal lacks of some runs (function, seed).

    Args:
        task: to train.
        runs: the first of the build, up to the last to be done now.
        journal: of finished runs; gets the others.
        total: runs of the build, for progress.
        workers: parallel processes.
        events: called after each run.

    Raises:
        BenchmarkError: runs failed.
    """
    spec, catalogue = task.spec, task.space.catalogue
    todo = [Run(index, catalogue.text(index), seed) for index, seed in runs]
    todo = [run for run in todo if (run.index, run.seed) not in journal]
    done = len(runs) - len(todo)
    events.runs(done, total, "runs")
    if not todo:
        return
    check_trains(task)
    failed: list[dict[str, Any]] = []
    in_a_row = 0
    for record in compute_in_processes(
        BuildJob(spec),
        todo,
        device=pick_device(spec.training.device),
        workers=workers,
        threads=spec.training.threads or cores_each(workers),
        imports=OPTIMIZER_IMPORTS,
        lost=lambda run, error: _failed(run, Failure.of(error, blame="machine")),
    ):
        if "failure" in record:
            failed.append(record)
            in_a_row += 1
            if in_a_row >= _FAILURES_IN_A_ROW:
                raise _incomplete(failed, total, done)
            continue
        in_a_row = 0
        journal.add(record)
        done += 1
        events.runs(done, total, "runs")
    if failed:
        raise _incomplete(failed, total, done)


def build_order(task: Task) -> list[int]:
    """Return the indices of a space's functions in the order of training.

    The baselines, with which every search begins, then the others at random, by the study's seed,
    because a catalogue is sorted by operators.
    """
    count = len(task.space.catalogue)
    shuffled = np.random.default_rng(task.spec.seed).permutation(count).tolist()
    return list(dict.fromkeys([*_baselines(task), *shuffled]))


def _baselines(task: Task) -> list[int]:
    baselines = []
    for baseline in task.space.baselines:
        with suppress(ExpressionError):  # a baseline need not be a function of the space
            baselines.append(task.space.catalogue.index(baseline))
    return baselines


def _best(task: Task, journal: RunJournal, wanted: Sequence[int]) -> list[int]:
    """Return the functions in the order of repetition: baselines, then by their first run."""
    sign = task.spec.measured.sign

    def rank(index: int) -> tuple[bool, float, int]:
        record = journal[index, 0]
        return record["status"] == DIVERGED, -sign * _measured(record, "validation_value"), index

    among = set(wanted)
    first = [index for index in _baselines(task) if index in among]
    return list(dict.fromkeys([*first, *sorted(wanted, key=rank)]))


def _incomplete(failed: Sequence[dict[str, Any]], total: int, done: int) -> BenchmarkError:
    """Return a message with the failures, grouped by reason."""
    reasons = "; ".join(
        f"{group.count} times {group.reason} ({group.functions})"
        for group in failures_of_runs("build", failed)
    )
    return BenchmarkError(
        f"{len(failed)} runs failed: {reasons}; {done} of {total} are saved, and the same command "
        "repeats the failed ones"
    )


def made_from(task: Task) -> dict[str, Any]:
    """Return everything that the runs of a build depend on."""
    return {"content": task.content, "study": described(task.spec)}


def _measured(record: dict[str, Any], key: str) -> float:
    """Return one of ``MEASURED`` of a run, within float32; NaN if it was not finite."""
    # Runs of versions with accuracies only call them so.
    value = record[key if key in record else key.replace("value", "accuracy")]
    return math.nan if value is None else min(max(float(value), -_LARGEST), _LARGEST)


def assemble(
    task: Task,
    records: Sequence[dict[str, Any]],
    features: FeatureTable,
    *,
    seeds: int,
    name: str,
) -> Benchmark:
    """Assemble a benchmark from the runs of a build.

    Args:
        task: of the runs.
        records: of runs (function, seed), in any order; runs without a record are NaN.
        features: of the task.
        seeds: S.
        name: of the benchmark.
    """
    shape = (len(task.space.catalogue), seeds)
    runs = {name: np.full(shape, np.nan) for name in MEASURED}
    diverged = np.zeros(shape, dtype=bool)
    curves = np.full((*shape, task.spec.training.epochs), np.nan, dtype=np.float32)
    for record in records:
        cell = record["index"], record["seed"]
        for metric in MEASURED:
            runs[metric][cell] = _measured(record, metric)
        diverged[cell] = record["status"] == DIVERGED
        curves[cell][: len(record["curve"])] = np.clip(record["curve"], -_LARGEST, _LARGEST)
    guessing = task.data.worst(task.metric)
    return Benchmark(
        name,
        task.space,
        runs,
        diverged,
        math.nan if guessing is None else guessing,
        features,
        curves,
        {
            "source": "built",
            "torch": torch.__version__.split("+")[0],
            "order": {"first": "baselines", "shuffled_by": task.spec.seed},
            **({PART: True} if len(records) < diverged.size else {}),
            **made_from(task),
        },
        metric=task.spec.measured,
    )
