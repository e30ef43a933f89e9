"""A pool of worker processes on this machine for the pieces of a job.

The parent hands out pieces, one at a time to each worker, and stores the results. A worker that
dies costs only its piece: it is replaced, and the piece is handed out again. Workers end with
their parent, however it ends. Messages are pickled, as in multiprocessing; nothing pickled is ever
stored or read from a file.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, TypeVar

import torch

from bo_act.errors import BoActError, WorkerError
from bo_act.urls import without_secrets

FunctionBatch = TypeVar("FunctionBatch", bound=Hashable)
Result = TypeVar("Result")
Job = Callable[[torch.device], Callable[[FunctionBatch], Result]]
"""What is to be done: called once in each worker, it returns what computes a piece there."""

_Kind = Literal["ready", "result", "error"]

# Workers are forked from a server that has imported what they need and used none of it: neither
# CUDA nor OpenMP survives a fork after use, and frameworks of macOS survive none.
_CONTEXT = get_context("forkserver") if sys.platform == "linux" else get_context("spawn")

ATTEMPTS = 3
"""Workers that may die over one piece before that is taken to be the piece's fault."""


def compute_in_processes(
    job: Job[FunctionBatch, Result],
    pieces: Sequence[FunctionBatch],
    *,
    device: torch.device,
    workers: int,
    threads: int | None = None,
    imports: Sequence[str] = (),
    lost: Callable[[FunctionBatch, WorkerError], Result] | None = None,
) -> Iterator[Result]:
    """Compute pieces in worker processes; yield results in the order of completion.

    Args:
        job: can be pickled.
        pieces: can be pickled; their text names them in errors.
        device: where; with several GPUs each worker takes the next one, unless one is named.
        workers: number of processes.
        threads: CPU threads of each; default: an equal share of the cores.
        imports: modules that every worker needs, beside the job's own; imported once where workers
            are forked. The first pool of a process decides.
        lost: makes the result of a piece after ``ATTEMPTS`` dead workers; default: an error.

    Raises:
        WorkerError: the job cannot be pickled, workers do not start, or ``ATTEMPTS`` workers died
            over one piece without ``lost``.
        Exception: from a worker.
    """
    pool = _Pool(job, pieces, device, min(workers, len(pieces)), threads or cores_each(workers))
    try:
        pool.begin(imports)
        left = len(pieces)
        while left:
            wait([end for worker in pool.workers for end in worker.ends])
            for slot, worker in enumerate(pool.workers):
                try:
                    answer = worker.answer()
                except EOFError:
                    dead = pool.replace(slot)
                    if dead is not None:
                        if lost is None:
                            raise dead[1] from None
                        left -= 1
                        yield lost(*dead)
                    continue
                if answer is None:
                    continue
                kind, content = answer
                if kind == "error":
                    raise content
                pool.feed(worker)
                if kind == "result":
                    left -= 1
                    yield content
    finally:
        pool.end()


class _Pool(Generic[FunctionBatch]):
    """The workers, the waiting pieces, and the deaths per piece."""

    def __init__(
        self,
        job: Job[FunctionBatch, Any],
        pieces: Sequence[FunctionBatch],
        device: torch.device,
        size: int,
        threads: int,
    ) -> None:
        self.job = type(job).__module__
        self.packed = _packed(job)
        self.device = device
        self.size = size
        self.threads = threads
        self.waiting = deque(pieces)
        self.deaths: Counter[FunctionBatch] = Counter()
        self.stillborn = 0
        self.workers: list[_Worker[FunctionBatch]] = []

    def begin(self, imports: Sequence[str]) -> None:
        """Start all workers, with what they need imported once."""
        ours = self.job.partition(".")[0] == __package__
        _CONTEXT.set_forkserver_preload([*imports, *([self.job] if ours else [])])
        for slot in range(self.size):
            self.workers.append(self._worker(slot))

    def feed(self, worker: _Worker[FunctionBatch]) -> None:
        """Give an idle worker its next piece."""
        self.stillborn = 0
        worker.take(self.waiting.popleft() if self.waiting else None)

    def replace(self, slot: int) -> tuple[FunctionBatch, WorkerError] | None:
        """Replace a dead worker, and put its piece first in the queue.

        Returns:
            The piece and its error, if no worker survives it.
        """
        worker = self.workers[slot]
        exit_code = worker.end(patience=5.0)
        dead = None
        if worker.piece is not None:
            self.deaths[worker.piece] += 1
            if self.deaths[worker.piece] == ATTEMPTS:
                dead = worker.piece, deadly(worker.piece, f"exit code {exit_code}")
            else:
                self.waiting.appendleft(worker.piece)
        elif not worker.started:
            self.stillborn += 1
            if self.stillborn == ATTEMPTS:
                raise _no_start(exit_code)
        self.workers[slot] = self._worker(slot)
        return dead

    def end(self) -> None:
        """End all workers; idle ones clean up what their libraries opened."""
        idle = [worker for worker in self.workers if worker.started and worker.piece is None]
        for worker in idle:
            worker.dismiss()
        for worker in self.workers:
            worker.end(patience=5.0 if worker in idle else 0.0)

    def _worker(self, slot: int) -> _Worker[FunctionBatch]:
        return _Worker(self.packed, device_of(self.device, slot), self.threads)


class _Worker(Generic[FunctionBatch]):
    """A worker process, on the parent's side.

    Attributes:
        piece: its current piece.
        started: whether it has reported that it is ready.
    """

    def __init__(self, packed: bytes, device: torch.device, threads: int) -> None:
        self.connection, other = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(
            target=_work,
            args=(other, packed, str(device), threads, dict(os.environ)),
            daemon=True,
        )
        # Else it starts with the first process, and unblocks interrupts.
        if os.name == "posix":
            resource_tracker.ensure_running()
        with no_interrupts():
            self.process.start()
        other.close()  # so that the connection ends with the worker
        self.ends = (self.connection, self.process.sentinel)  # ready on news
        self.piece: FunctionBatch | None = None
        self.started = False

    def take(self, piece: FunctionBatch | None) -> None:
        """Start with a piece; None lets the worker wait."""
        self.piece = piece
        if piece is not None:
            with suppress(OSError):  # it died; the next answer reports it
                self.connection.send(piece)

    def dismiss(self) -> None:
        """Ask an idle worker to end."""
        with suppress(OSError):  # it died
            self.connection.send(None)

    def answer(self) -> tuple[_Kind, Any] | None:
        """Return the worker's message, None if there is none yet.

        Raises:
            EOFError: the worker died.
        """
        dead = self.process.exitcode is not None
        try:
            if not self.connection.poll():
                if dead:
                    raise EOFError
                return None
            answer: tuple[_Kind, Any] = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        self.started = True
        return answer

    def end(self, patience: float = 0.0) -> int | None:
        """End the process, by force after so many seconds, and return its exit code."""
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.connection.close()
        return self.process.exitcode


# --- in the worker --------------------------------------------------------------------------


def _work(
    connection: Connection, packed: bytes, device: str, threads: int, environment: dict[str, str]
) -> None:
    # The server's are those of the first pool.
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        compute = _unpacked(packed)(torch.device(device))
        connection.send(("ready", None))
        while (piece := connection.recv()) is not None:
            connection.send(("result", compute(piece)))
    except Exception as error:
        with suppress(OSError):  # the parent is gone
            connection.send(("error", portable(error)))


def end_with_parent() -> None:
    """End this process when its parent ends in any way; for a thread."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def portable(error: Exception) -> Exception:
    """Return an error that can be pickled, if possible itself, with its traceback."""
    if not isinstance(error, BoActError):
        trace = "".join(traceback.format_exception(error))
        error.add_note("in a worker:\n" + without_secrets(trace))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return WorkerError(f"a worker failed: {type(error).__name__}: {error}")
    return error


# --- messages ---------------------------------------------------------------------


def deadly(piece: object, how: str) -> WorkerError:
    """Return the error for a piece that no worker survives."""
    return WorkerError(
        f"{ATTEMPTS} workers died one after the other ({how}) over {piece}; earlier results are "
        "saved. Too little memory is the usual cause: use fewer workers or a smaller "
        f"batch_size"
    )


def _no_start(exit_code: int | None) -> WorkerError:
    return WorkerError(
        f"{ATTEMPTS} workers ended (exit code {exit_code}) before they could begin. A script that "
        "starts workers must be a file and do its work under if __name__ == '__main__':"
    )


def _packed(job: Job[Any, Any]) -> bytes:
    try:
        return pickle.dumps(job)
    except Exception as error:
        raise WorkerError(
            f"several workers need a network that can be pickled, and this one cannot: {error}; "
            f"give a function at the top level of a module instead of a lambda or an inner "
            f"function, or compute with workers=1"
        ) from error


def _unpacked(packed: bytes) -> Job[Any, Any]:
    try:
        job: Job[Any, Any] = pickle.loads(packed)
    except (AttributeError, ImportError) as error:
        raise WorkerError(
            f"a network or function cannot be loaded in a worker: {error}; define it at the top "
            f"level of a module that can be imported there, or compute with workers=1"
        ) from error
    return job


def cores_each(workers: int) -> int:
    """Return the CPU threads of each worker: an equal share of this process's cores."""
    # Not all platforms know the cores of a process.
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return max(1, cores // workers)


def device_of(device: torch.device, slot: int) -> torch.device:
    """Return the device of the n-th worker: of several GPUs the next one, unless named."""
    if device == torch.device("cuda"):  # any
        return torch.device("cuda", slot % torch.cuda.device_count())
    return device


@contextmanager
def no_interrupts() -> Iterator[None]:
    """Block Ctrl-C in processes started inside: their parent ends them."""
    mask = getattr(signal, "pthread_sigmask", None)  # Windows has none
    before = mask(signal.SIG_BLOCK, {signal.SIGINT}) if mask else None
    try:
        yield
    finally:
        if mask:
            mask(signal.SIG_SETMASK, before)
