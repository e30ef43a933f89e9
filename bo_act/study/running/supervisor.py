"""The supervisor of a study's worker processes on this machine.

Workers run on their own (``work``) and write to the storage. The supervisor reports their trials,
replaces dead workers, and ends all of them when it ends.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from queue import SimpleQueue

import optuna
from optuna.trial import TrialState

from bo_act.errors import WorkerError
from bo_act.events import Events
from bo_act.process_pool import cores_each, device_of, no_interrupts
from bo_act.specs import StudySpec
from bo_act.study.results.summary import best_value
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.waiting import awaited
from bo_act.study.running.worker import finished
from bo_act.study.running.worker_process import as_message
from bo_act.study.storage.owner import OWNER, Owner
from bo_act.study.storage.trials import count, own_trials
from bo_act.training.trainer import pick_device

_LOOK = 0.5  # seconds between polls of the study
_GOODBYE = 30.0  # seconds for workers to give their trials back
_LAST_WORDS = 2.0  # seconds to read a dead worker's stderr; its children may hold it open
_MOST_DEATHS = 5  # in a row in one slot, while no worker finishes a trial

# How the command line reports errors: lines on stderr, and exit codes.
_WARNING, _ERROR, _STOPPED = "warning: ", "error: ", 2
_TRACE, _DEFECT = "Traceback (most recent call last)", 1


def search_with_workers(
    spec: StudySpec, study: optuna.Study, *, workers: int, events: Events, callbacks: Callbacks
) -> None:
    """Run a study with worker processes until it is done.

    Args:
        spec: the study.
        study: opened; only read here.
        workers: number of processes; they take the GPUs in turn.
        events: the progress listener, for the trials of all workers.
        callbacks: to run after each trial.

    Raises:
        WorkerError: a worker stopped with an error, or workers die again and again.
        RuntimeError: a defect ended a worker.
    """
    watch = TrialWatcher(study, spec.trials, events, callbacks)
    slots = [WorkerProcess(spec, study, slot, workers) for slot in range(workers)]
    try:
        # ``sum`` asks every slot, so that a dead worker is replaced while others run.
        while sum(slot.goes_on() for slot in slots):
            time.sleep(_LOOK)
            if watch.look():
                for slot in slots:
                    slot.deaths = 0
        watch.look()
    finally:
        for slot in slots:
            slot.ask_to_end()
        ends = time.monotonic() + _GOODBYE
        for slot in slots:
            slot.end(ends - time.monotonic())


class TrialWatcher:
    """Reports the trials of a study as they end.

    Args:
        study: any.
        total: its number of trials.
        events: the progress listener.
        callbacks: to run after each trial.
    """

    def __init__(
        self, study: optuna.Study, total: int, events: Events, callbacks: Callbacks
    ) -> None:
        self._study, self._total, self._events = study, total, events
        self._callbacks = callbacks
        self._reported = {t.number for t in own_trials(study) if t.state.is_finished()}
        events.search(finished(study), total, None, best_value(study))

    def look(self) -> int:
        """Report the trials that ended since the last call, and return how many."""
        before = len(self._reported)
        trials = own_trials(self._study)
        counts = count(trials)
        done = counts.finished
        # Only then do workers wait for others' trials; live ones need no message.
        waiting = done < self._total <= done + counts.running
        others = awaited(self._study) if waiting else []
        silent = [trial for trial in others if trial.kind != "alive"]
        self._events.waiting(silent)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._reported:
                self._reported.add(trial.number)
                self._callbacks(self._study, trial)
                self._events.search(done, self._total, trial, best_value(self._study))
        return len(self._reported) - before


class WorkerProcess:
    """A slot for a worker, and its current process ``bo-act worker -``.

    The worker reads the study from stdin, so that no password appears on a command line. It ends
    when stdin closes, however the parent ends. Its output goes to the parent's; the parent raises
    its warnings and final error as its own.

    Args:
        spec: the study.
        study: opened; only read here.
        slot: index, from 0; slots take the GPUs in turn.
        workers: number of slots.

    Attributes:
        deaths: of its workers, since the last trial of any worker ended.
        done: whether its worker found nothing more to do.
    """

    def __init__(self, spec: StudySpec, study: optuna.Study, slot: int, workers: int) -> None:
        device = device_of(pick_device(spec.training.device), slot)
        threads = spec.training.threads or cores_each(workers)
        training = spec.training.model_copy(update={"device": str(device), "threads": threads})
        self._message = as_message(spec.model_copy(update={"training": training}))
        self._study = study
        self.deaths = 0
        self.done = False
        self._start()

    def _start(self) -> None:
        # -P: workers import from the parent's path, without their working folder.
        paths = os.pathsep.join(part or os.getcwd() for part in sys.path)
        with no_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bo_act.cli", "worker", "-"],
                env=os.environ | {"PYTHONPATH": paths},
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self._warnings: SimpleQueue[str] = SimpleQueue()
        self._error = self._defect = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        pipe = self._process.stdin
        if pipe is not None:
            with suppress(OSError):  # it died; its exit code says why
                pipe.write(self._message)
                pipe.flush()

    def _listen(self) -> None:
        """Pass the worker's stderr on, except for warnings and a final error."""
        pipe = self._process.stderr
        if pipe is None:
            return
        encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0] or None
        error, traced = "", False
        # Progress bars end their lines in a carriage return: keep it.
        with io.TextIOWrapper(pipe, encoding, errors="backslashreplace", newline="") as lines:
            for line in lines:
                _say(error)
                error = line if line.startswith(_ERROR) else ""
                if line.startswith(_WARNING):
                    self._warnings.put(line.removeprefix(_WARNING).strip())
                elif not error:
                    _say(line)
                    traced = traced or line.startswith(_TRACE)
                    self._defect = line.strip() if traced else ""
        self._error = error

    def goes_on(self) -> bool:
        """Return whether the worker has more to do; replace a dead one, up to a limit.

        Raises:
            WorkerError: the worker stopped with an error, or dies again and again.
            RuntimeError: a defect ended the worker.
        """
        if self.done:
            return False
        code = self._process.poll()
        if code is not None:
            self._listener.join(_LAST_WORDS)
        while not self._warnings.empty():
            warnings.warn(self._warnings.get(), stacklevel=2)
        if code is None:
            return True
        if code == _STOPPED and self._error:
            raise WorkerError(self._error.removeprefix(_ERROR).strip())
        if code == _DEFECT and self._defect:
            raise RuntimeError(f"a worker failed, with the traceback above: {self._defect}")
        # Exit code 0 means done, unless user code called os._exit during a trial.
        self.done = code == 0 and not self._has_a_trial()
        if self.done:
            return False
        _say(self._error)
        self.deaths += 1
        if self.deaths >= _MOST_DEATHS:
            raise WorkerError(
                f"{self.deaths} workers died one after the other (exit code {code}) without "
                "finishing a trial; all results are saved. Too little memory is the usual cause: "
                "use fewer workers or a smaller batch_size"
            )
        self._close()
        self._start()
        return True

    def _has_a_trial(self) -> bool:
        """Tell whether the worker owns a running trial."""
        running = (t for t in own_trials(self._study) if t.state == TrialState.RUNNING)
        owners = [Owner.read(trial.system_attrs.get(OWNER)) for trial in running]
        return any(owner and owner.is_here and owner.pid == self._process.pid for owner in owners)

    def ask_to_end(self) -> None:
        """Ask the worker to give its trial back and to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def end(self, patience: float) -> None:
        """Wait so many seconds for the worker to end, then kill it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, patience))
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # stderr is closed
        sys.stderr.write(line)
