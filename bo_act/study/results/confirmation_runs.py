"""The trainings of a confirmation, in this process or in workers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import torch

from bo_act.activations.expressions import canonical, parse
from bo_act.data.samples import Samples
from bo_act.dependencies.torch_internals import OPTIMIZER_IMPORTS
from bo_act.process_pool import compute_in_processes, cores_each
from bo_act.specs import StudySpec
from bo_act.specs.base import derived_seed
from bo_act.study.results.confirmed import KEY, packed
from bo_act.tasks.configuration import Configuration
from bo_act.tasks.failures import failure_of
from bo_act.tasks.task import Task
from bo_act.training.trainer import cpu_threads, pick_device
from bo_act.user_code.failures import USERS, Failure


@dataclass(frozen=True)
class Run:
    """One training of the confirmation, sent to worker processes.

    Attributes:
        content: texts of the functions by activation, settings and other parameters, as JSON.
        seed: index of the fresh seed, from 0.
        trained_with: the seed itself.
    """

    content: str
    seed: int
    trained_with: int

    def __str__(self) -> str:
        return f"{self.configuration.text} with fresh seed {self.seed}"

    @classmethod
    def of(cls, configuration: Configuration, seed: int, *, first: int) -> Run:
        """Return the training of a configuration; ``first`` is the first of the seeds."""
        texts = {name: str(function) for name, function in configuration.functions.items()}
        settings, asked = dict(configuration.settings), dict(configuration.asked)
        return cls(json.dumps([texts, settings, asked]), seed, derived_seed(first, seed))

    @property
    def configuration(self) -> Configuration:
        """The configuration to train."""
        texts, settings, asked = json.loads(self.content)
        functions = {name: canonical(parse(text)) for name, text in texts.items()}
        return Configuration(functions, settings, asked)


@dataclass(frozen=True)
class ConfirmationJob:
    """Trains and measures on the test set in a worker."""

    spec: StudySpec

    def __call__(self, device: torch.device) -> Callable[[Run], tuple[Run, dict[str, Any]]]:
        """Load the study's task on a device, and return the function that trains."""
        training = self.spec.training.model_copy(update={"device": str(device)})
        task = Task.load(self.spec.model_copy(update={"training": training}))
        test = _test_of(task)

        def measure(run: Run) -> tuple[Run, dict[str, Any]]:
            with cpu_threads(training.threads):
                return run, _measure_or_fail(task, run, test)

        return measure


def measured(task: Task, runs: Sequence[Run], workers: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Measure runs; the test set is loaded once, and only if there are runs."""
    if workers > 1 and len(runs) > 1:
        training = task.spec.training
        yield from compute_in_processes(
            ConfirmationJob(task.spec),
            runs,
            device=pick_device(training.device),
            workers=workers,
            threads=training.threads or cores_each(workers),
            imports=OPTIMIZER_IMPORTS,
            lost=lambda run, error: (
                run,
                {"failure": Failure.of(error, blame="machine").as_attribute()},
            ),
        )
    elif runs:
        test = _test_of(task)
        for run in runs:
            yield run, _measure_or_fail(task, run, test)


def _test_of(task: Task) -> Samples | None:
    """Return the test samples; None if the study has its own objective."""
    return None if task.objective else task.data.load_test()


def _measure_or_fail(task: Task, run: Run, test: Samples | None) -> dict[str, Any]:
    """Measure a run, or return why it failed."""
    try:
        return _own_objective(task, run) if test is None else _measure(task, run, test)
    except USERS as error:
        failure = failure_of(error, objective=task.objective is not None)
        if failure is None:
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return {"failure": failure.as_attribute()}


def _measure(task: Task, run: Run, test: Samples) -> dict[str, Any]:
    functions, settings = run.configuration.trained, run.configuration.settings
    network, result = task.train(functions, seed=run.trained_with, settings=settings)
    value, examples = result.value, None  # of guessing, if it diverged
    if result.status == "completed":
        value, _ = task.measure(network, test)
        examples = packed(task.per_example(network, test))
    return {
        "test": value,
        "validation": result.value,
        "status": result.status,
        "seconds": round(result.seconds, 3),
        KEY: examples,
    }


def _own_objective(task: Task, run: Run) -> dict[str, Any]:
    """Return the results of your own objective with a fresh seed.

    A diverged training has no values; the caller replaces them by the worst.
    """
    if task.objective is None:
        raise AssertionError("the study has no objective of its own")
    configuration, started = run.configuration, time.perf_counter()
    context = task.context(seed=run.trained_with, settings=configuration.settings)
    # A fixed trial ignores reports and is never pruned.
    trial: Any = optuna.trial.FixedTrial(dict(configuration.asked))
    answer = task.objective(trial, configuration.trained, context, task.spec.activation.options)
    finite = all(math.isfinite(value) for value in (answer.value, answer.test or 0.0))
    test = answer.value if answer.test is None else answer.test
    return {
        "test": test if finite else None,
        "validation": answer.value if finite else None,
        "of": "validation" if answer.test is None else "test",
        "status": "completed" if finite else "diverged",
        "seconds": round(time.perf_counter() - started, 3),
        KEY: None,
    }
