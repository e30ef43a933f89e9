"""The workers of one study on this machine, or wherever Ray places them, and their parent.

Each works on the study by itself (``work``); what it does is in the storage. The parent shows what
comes, replaces who dies, and ends them all when it ends.
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

_LOOK = 0.5  # seconds between the parent's looks at the study
_GOODBYE = 30.0  # seconds that workers have to give their trials back
_LAST_WORDS = 2.0  # seconds to read what a dead worker has said; its children may hold stderr open
_MOST_DEATHS = 5  # in a row in one place, without a trial of any worker between them

# How the command line tells what went wrong: lines on stderr, and the exit code after an error.
_WARNING, _ERROR, _STOPPED = "warning: ", "error: ", 2
_TRACE, _DEFECT = "Traceback (most recent call last)", 1


def search_with_workers(
    spec: StudySpec, study: optuna.Study, *, workers: int, events: Events, told: Callbacks
) -> None:
    """Run a study with worker processes until it is done.

    Args:
        spec: the study.
        study: opened; only read here.
        workers: processes; of several GPUs each takes the next one.
        events: called as trials end, whoever ran them.
        told: of each trial that ends, too.

    Raises:
        WorkerError: what ended a worker, or that workers die again and again.
        RuntimeError: a defect has ended a worker.
    """
    watch = TrialWatcher(study, spec.trials, events, told)
    slots = [WorkerProcess(spec, study, place, workers) for place in range(workers)]
    try:
        # Each is asked each time, so that a dead one is replaced while others are at work.
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
        total: trials that it is to have.
        events: the progress listener.
        callbacks: to call as well.
    """

    def __init__(
        self, study: optuna.Study, total: int, events: Events, callbacks: Callbacks
    ) -> None:
        self._study, self._total, self._events = study, total, events
        self._callbacks = callbacks
        self._told = {t.number for t in own_trials(study) if t.state.is_finished()}
        events.search(finished(study), total, None, best_value(study))

    def look(self) -> int:
        """Tell of those that have ended since the last look, and return how many."""
        before = len(self._told)
        trials = own_trials(self._study)
        counts = count(trials)
        done = counts.finished
        # Workers have nothing to begin, then; that others are at work is seen anyway.
        waiting = done < self._total <= done + counts.running
        silent = [one for one in awaited(self._study) if one.kind != "alive"] if waiting else []
        self._events.waiting(silent)
        for trial in trials:
            if trial.state.is_finished() and trial.number not in self._told:
                self._told.add(trial.number)
                self._callbacks(self._study, trial)
                self._events.search(done, self._total, trial, best_value(self._study))
        return len(self._told) - before


class WorkerProcess:
    """One place for a worker, and the process ``bo-act worker -`` that has it now.

    The worker reads the study from stdin, so that no password stands on a command line. It ends
    when stdin does, which it does however the parent ends. What it prints goes where the parent's
    goes, but for its warnings and the error that ends it: those the parent tells as its own.

    Args:
        spec: the study.
        study: opened; only read here.
        place: counted from 0; of several GPUs each place has the next one.
        workers: places in all.

    Attributes:
        deaths: of its workers, since any worker of the study has ended a trial.
        done: whether its worker has found nothing more to do.
    """

    def __init__(self, spec: StudySpec, study: optuna.Study, place: int, workers: int) -> None:
        device = device_of(pick_device(spec.training.device), place)
        threads = spec.training.threads or cores_each(workers)
        training = spec.training.model_copy(update={"device": str(device), "threads": threads})
        self._message = as_message(spec.model_copy(update={"training": training}))
        self._study = study
        self.deaths = 0
        self.done = False
        self._start()

    def _start(self) -> None:
        # -P: the modules that are found are those found from here, not all of the working folder.
        found = os.pathsep.join(part or os.getcwd() for part in sys.path)
        with no_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bo_act.cli", "worker", "-"],
                env=os.environ | {"PYTHONPATH": found},
                stdin=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        self._warnings: SimpleQueue[str] = SimpleQueue()
        self._error = self._defect = ""
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        pipe = self._process.stdin
        if pipe is not None:
            with suppress(OSError):  # it has died, as its exit code will say
                pipe.write(self._message)
                pipe.flush()

    def _listen(self) -> None:
        """Hand on what the worker prints on stderr; keep warnings, and an error at the end."""
        pipe = self._process.stderr
        if pipe is None:
            return
        encoding = os.environ.get("PYTHONIOENCODING", "").partition(":")[0] or None
        error, traced = "", False
        # Progress bars end their lines in a carriage return, which stays what it is.
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
        """Return whether the worker has more to do; a dead one is replaced, within bounds.

        Raises:
            WorkerError: what ended the worker, or that it dies again and again.
            RuntimeError: a defect has ended the worker.
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
        # With 0 it is done, unless code of the user's has called os._exit in a trial.
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
        """Tell whether a trial of the study belongs to the worker."""
        running = (t for t in own_trials(self._study) if t.state == TrialState.RUNNING)
        owners = [Owner.read(trial.system_attrs.get(OWNER)) for trial in running]
        return any(one and one.is_here and one.pid == self._process.pid for one in owners)

    def ask_to_end(self) -> None:
        """Ask the worker to give its trial back and to end."""
        if self._process.poll() is None:
            self._process.terminate()

    def end(self, patience: float) -> None:
        """End the worker, whatever it does, after so many seconds."""
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
    with suppress(OSError, ValueError):  # nobody hears it
        sys.stderr.write(line)
