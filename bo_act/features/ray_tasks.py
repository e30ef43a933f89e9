"""Shards of Fisher spectra as Ray tasks on the machines of a cluster.

Without a cluster (``RAY_ADDRESS``), Ray starts on this machine and stops at the end.
"""

from __future__ import annotations

import os
import sys
import threading
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from types import ModuleType
from typing import Any, TextIO, cast

import torch

from bo_act.dependencies.extras import require_extra
from bo_act.errors import BoActError, FeatureError
from bo_act.features.fisher_worker import FisherJob, FunctionBatch, Spectra
from bo_act.features.store import Shard
from bo_act.process_pool import ATTEMPTS, cores_each, deadly, portable

_opened: dict[str, Spectra] = {}  # in a Ray worker: its job, by name


def compute_with_ray(
    job: FisherJob,
    pieces: Sequence[FunctionBatch],
    *,
    device: torch.device,
    workers: int,
    threads: int | None = None,
) -> Iterator[Shard]:
    """Compute batches of functions as Ray tasks; yield shards in the order of completion.

    Args:
        job: what to compute.
        pieces: batches of functions.
        device: where; on CUDA each task has one GPU to itself.
        workers: number of tasks at a time.
        threads: CPU threads of each task; default: an equal share of this machine's cores.

    Raises:
        FeatureError: Ray is missing or unreachable, the network cannot be pickled, or ``ATTEMPTS``
            workers died over one batch (WorkerError).
        Exception: from a task.
    """
    threads = threads or cores_each(workers)
    ray = import_ray()
    cuda = device.type == "cuda"
    needs = {"num_gpus": 1} if cuda else {"num_cpus": threads}
    # A task sees only its own GPU, as the first one.
    where = "cuda" if cuda else str(device)
    mine = not ray.is_initialized()
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(cast(TextIO, WithoutRay(sys.stdout))))
        if mine:
            start_ray(ray, cpus=workers * threads)
            stack.callback(ray.shutdown)
        task = ray.remote(max_retries=ATTEMPTS - 1, **needs)(_work)
        sent = [_put(ray, job)]
        name = uuid.uuid4().hex
        waiting = deque(pieces)
        running: dict[Any, FunctionBatch] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                piece = waiting.popleft()
                running[task.remote(name, sent, piece, where, threads)] = piece
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            piece = running.pop(done)
            try:
                answer = ray.get(done)
            except ray.exceptions.RayError as error:
                raise _failed(ray, piece, error) from error
            if isinstance(answer, BaseException):
                raise answer
            yield answer


class WithoutRay:
    """A stream without the output of Ray's own threads, which report dead workers on stdout."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, except for Ray's threads."""
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _work(
    name: str, sent: list[Any], piece: FunctionBatch, device: str, threads: int
) -> Shard | BaseException:
    """Compute one batch in a Ray worker; return errors as values, so that they arrive unwrapped."""
    import ray

    try:
        torch.set_num_threads(threads)
        if name not in _opened:
            _opened.clear()
            _opened[name] = Spectra(ray.get(sent[0]), torch.device(device))
        return _opened[name].shard(piece)
    except Exception as error:
        return portable(error)


def import_ray() -> ModuleType:
    """Return Ray, quiet.

    Raises:
        MissingExtraError: it is not installed.
    """
    # Ray reads these at import or start; a user's own values stay.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    return require_extra(
        "ray",
        'the executor "ray"',
        otherwise='without it, executor="process" uses this machine\'s cores and GPUs',
    )


def start_ray(ray: ModuleType, *, cpus: int) -> None:
    """Connect to the cluster at ``RAY_ADDRESS``, or start Ray here with that many cores.

    Raises:
        FeatureError: Ray cannot be reached or started.
    """
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=address or "local", log_to_driver=False, logging_level="ERROR", **local
            )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what = f"reached at {address}" if address else "started on this machine"
        raise FeatureError(
            f"Ray cannot be {what}: {error}; check RAY_ADDRESS and 'ray status', "
            f'or use executor="process"'
        ) from error


def _put(ray: ModuleType, job: FisherJob) -> Any:
    try:
        return ray.put(job)
    except (TypeError, ValueError, AttributeError) as error:
        raise FeatureError(
            f"several workers need a network that can be pickled, and this one cannot: {error}; "
            f"give a function at the top level of a module, or compute with workers=1"
        ) from error


def _failed(ray: ModuleType, piece: FunctionBatch, error: Exception) -> BoActError:
    if isinstance(error, ray.exceptions.WorkerCrashedError | ray.exceptions.OutOfMemoryError):
        return deadly(piece, type(error).__name__)
    text = " ".join(str(error).split())[:300]
    return FeatureError(f"Ray failed over the spectra of {piece}: {text}")
