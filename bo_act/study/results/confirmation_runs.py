"""The trainings of a confirmation, one after the other or in worker processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bo_act.activations.expressions import canonical, parse
from bo_act.data.samples import Samples
from bo_act.failures import USERS, Failure
from bo_act.process_pool import compute_in_processes, cores_each
from bo_act.specs import StudySpec
from bo_act.specs.base import derived_seed
from bo_act.study.results.per_example import KEY, packed
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.failures import failure_of
from bo_act.tasks.task import Task
from bo_act.training.trainer import cpu_threads, pick_device


@dataclass(frozen=True)
class Run:
    """One training of the confirmation; travels to other processes.

    Attributes:
        what: the functions' texts by place, and the settings, as JSON.
        seed: which of the fresh seeds, from 0.
        trained_with: the seed itself.
    """

    what: str
    seed: int
    trained_with: int

    def __str__(self) -> str:
        return f"{self.configuration.text} with fresh seed {self.seed}"

    @classmethod
    def of(cls, one: Configuration, seed: int, *, first: int) -> Run:
        """Return the training of a configuration; ``first`` is the first of the seeds."""
        texts = {name: str(function) for name, function in one.functions.items()}
        return cls(json.dumps([texts, dict(one.settings)]), seed, derived_seed(first, seed))

    @property
    def configuration(self) -> Configuration:
        """What is trained."""
        texts, settings = json.loads(self.what)
        functions = {name: canonical(parse(text)) for name, text in texts.items()}
        return Configuration(functions, settings)


@dataclass(frozen=True)
class ConfirmationJob:
    """Trains and reads the test set in a worker."""

    spec: StudySpec

    def __call__(self, device: torch.device) -> Callable[[Run], tuple[Run, dict[str, Any]]]:
        """Load the study's task on a device; what comes back trains."""
        training = self.spec.training.model_copy(update={"device": str(device)})
        task = Task.load(self.spec.model_copy(update={"training": training}))
        test = task.data.load_test()

        def measure(run: Run) -> tuple[Run, dict[str, Any]]:
            with cpu_threads(training.threads):
                return run, _measure_or_fail(task, run, test)

        return measure


def measured(task: Task, runs: Sequence[Run], workers: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Measure runs; the test set is read once, and only where there is something to measure."""
    if workers > 1 and len(runs) > 1:
        training = task.spec.training
        yield from compute_in_processes(
            ConfirmationJob(task.spec),
            runs,
            device=pick_device(training.device),
            workers=workers,
            threads=training.threads or cores_each(workers),
            lost=lambda run, error: (
                run,
                {"failure": Failure.of(error, blame="machine").as_attribute()},
            ),
        )
    elif runs:
        test = task.data.load_test()
        for run in runs:
            yield run, _measure_or_fail(task, run, test)


def _measure_or_fail(task: Task, run: Run, test: Samples) -> dict[str, Any]:
    """Measure a run, or return why it failed."""
    try:
        return _measure(task, run, test)
    except USERS as error:
        failure = failure_of(error)
        if failure is None:
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"failure": failure.as_attribute()}


def _measure(task: Task, run: Run, test: Samples) -> dict[str, Any]:
    one = run.configuration
    network, result = task.train(one.trained, seed=run.trained_with, settings=one.settings)
    value, examples = result.value, None  # of guessing, where it diverged
    if result.status == "completed":
        value, _ = task.measure(network, test)
        right = task.per_example(network, test)
        examples = None if right is None else packed(right)
    return {
        "test": value,
        "validation": result.value,
        "status": result.status,
        "seconds": round(result.seconds, 3),
        KEY: examples,
    }
