"""The workers of one study on a Ray cluster.

Ray places them; all of them read and write the study's storage.
"""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import optuna

from bo_act.errors import BoActError, StorageError, WorkerError
from bo_act.events import Events
from bo_act.features.ray_tasks import WithoutRay, import_ray, start_ray
from bo_act.process_pool import cores_each, portable
from bo_act.specs import StudySpec
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.supervisor import TrialWatcher
from bo_act.study.running.worker import work
from bo_act.study.storage.opening import file_of, location
from bo_act.training.trainer import pick_device
from bo_act.user_code.failures import one_line

_LOOK = 0.5  # seconds between polls of the study
_MOST_DEATHS = 20  # of one worker and its replacements


def search_with_ray(
    spec: StudySpec, study: optuna.Study, *, workers: int, events: Events, callbacks: Callbacks
) -> None:
    """Run a study with Ray workers until it is done.

    Without a cluster (``RAY_ADDRESS``), it starts Ray on this machine.

    Args:
        spec: the study. On a cluster, all machines must reach its storage, a database.
        study: opened; only read here.
        workers: how many at a time; each has its own GPU if the study trains on GPUs.
        events: the progress listener, for the trials of all workers.
        callbacks: to run after each trial.

    Raises:
        FeatureError: Ray is missing or cannot be reached.
        StorageError: a cluster cannot reach a study in memory.
        WorkerError: workers die again and again.
        BoActError: from a worker.
    """
    where, file = location(spec), file_of(location(spec))
    changes: dict[str, Any] = {}
    if file is not None:
        changes["storage"] = str(file.resolve())
    elif where.startswith("sqlite:///") and not where.startswith("sqlite:////"):
        raise StorageError(
            f"workers elsewhere cannot find {where}, a path relative to this folder; give "
            "--storage a plain path, or postgresql://..."
        )
    threads = spec.training.threads or cores_each(workers)
    cuda = pick_device(spec.training.device).type == "cuda"
    training = {"threads": threads, "device": "cuda" if cuda else spec.training.device}
    changes["training"] = spec.training.model_copy(update=training)
    sent = spec.model_copy(update=changes)
    ray = import_ray()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(cast(TextIO, WithoutRay(sys.stdout))))
        if not ray.is_initialized():
            start_ray(ray, cpus=workers * threads)
            stack.callback(ray.shutdown)
        needs = {"num_gpus": 1} if cuda else {"num_cpus": threads}
        task = ray.remote(max_retries=_MOST_DEATHS, **needs)(_work)
        watch = TrialWatcher(study, spec.trials, events, callbacks)
        left = [task.remote(sent, os.getcwd()) for _ in range(workers)]
        stack.callback(_cancel, ray, left)
        while left:
            done, rest = ray.wait(left, num_returns=1, timeout=_LOOK)
            left[:] = rest
            watch.look()
            for finished in done:
                try:
                    answer = ray.get(finished)
                except ray.exceptions.RayError as error:
                    raise WorkerError(f"a Ray worker was lost: {one_line(error)}") from error
                if isinstance(answer, BaseException):
                    raise answer


def _cancel(ray: Any, left: list[Any]) -> None:
    for task in left:
        with suppress(Exception):
            ray.cancel(task)  # acts like Ctrl-C: the trial is given back


def _work(spec: StudySpec, folder: str) -> int | BaseException:
    """Work in a Ray process; return an error rather than raise it, so that Ray keeps its type."""
    if Path(folder).is_dir():  # base of the study file's relative paths
        os.chdir(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return work(spec, checked=True)
    except BoActError as error:
        return error
    except Exception as error:
        return portable(error)
