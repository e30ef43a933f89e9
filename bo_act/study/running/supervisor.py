"""The workers of one study on this machine, or wherever Ray places them, and their parent.

Each works on the study by itself (``work``); what it does is in the storage. The parent shows what
comes, replaces who dies, and ends them all when it ends.
"""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess

import optuna

from bo_act.errors import WorkerError
from bo_act.events import Events
from bo_act.process_pool import cores_each, device_of, no_interrupts
from bo_act.specs import StudySpec
from bo_act.study.results.summary import best_value
from bo_act.study.running.callbacks import Callbacks
from bo_act.study.running.waiting import awaited
from bo_act.study.running.worker import finished
from bo_act.study.running.worker_process import work_for_parent
from bo_act.study.storage.trials import count, own_trials
from bo_act.training.trainer import pick_device

_LOOK = 0.5  # seconds between the parent's looks at the study
_GOODBYE = 30.0  # seconds that workers have to give their trials back
_MOST_DEATHS = 5  # in a row in one place, without a trial of any worker between them


def search_with_crew(
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
        WorkerError: workers die again and again.
        BoActError: what a worker raised.
    """
    watch = TrialWatcher(study, spec.trials, events, told)
    slots = [WorkerProcess(spec, slot, workers) for slot in range(workers)]
    try:
        # Each is asked each time, so that a dead one is replaced while others are at work.
        while sum(slot.goes_on() for slot in slots):
            if watch.look():
                for slot in slots:
                    slot.deaths = 0
            time.sleep(_LOOK)
        watch.look()
    finally:
        for slot in slots:
            slot.ask_to_end()
        ends = time.monotonic() + _GOODBYE
        for slot in slots:
            slot.end(ends - time.monotonic())


class TrialWatcher:
    """Tells of the trials of a study as they end.

    Args:
        study: any.
        total: trials that it is to have.
        events: who is told.
        callbacks: who is told, too.
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
    """One place for a worker, and who has it now.

    Attributes:
        deaths: of its workers, since any worker of the study has ended a trial.
        done: whether its worker has found nothing more to do. One that ends without saying so was
            ended by something, as by ``os._exit`` in code of the user's.
    """

    def __init__(self, spec: StudySpec, slot: int, workers: int) -> None:
        device = device_of(pick_device(spec.training.device), slot)
        threads = spec.training.threads or cores_each(workers)
        training = spec.training.model_copy(update={"device": str(device), "threads": threads})
        self._spec = spec.model_copy(update={"training": training})
        self.deaths = 0
        self.done = False
        self._start()

    def _start(self) -> None:
        # Spawned: a fork would share CUDA's state and the connections to the database.
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=work_for_parent, args=(other, self._spec), daemon=True
        )
        with no_interrupts():
            self._process.start()
        other.close()

    def goes_on(self) -> bool:
        """Return whether the worker has more to do; a dead one is replaced, within bounds.

        Raises:
            BoActError: what the worker raised, or that it dies again and again.
        """
        for said in self._heard():
            if isinstance(said, Exception):
                raise said
            if isinstance(said, str):
                warnings.warn(said, stacklevel=2)
                continue
            if said is None:
                self.done = True
                continue
            self.deaths = 0  # it has ended a trial
        code = self._process.exitcode
        if code is None:
            return True
        if self.done:
            return False
        self.deaths += 1
        if self.deaths >= _MOST_DEATHS:
            raise WorkerError(
                f"{self.deaths} workers died one after the other (exit code {code}) without "
                "ending a trial; what was found is kept. Too little memory is the usual cause: "
                "use fewer workers or a smaller batch_size"
            )
        self._connection.close()
        self._start()
        return True

    def _heard(self) -> list[object]:
        heard: list[object] = []
        with suppress(EOFError, OSError):  # it has died
            while self._connection.poll():
                heard.append(self._connection.recv())
        return heard

    def ask_to_end(self) -> None:
        """Ask the worker to give its trial back and to end."""
        if self._process.is_alive():
            self._process.terminate()

    def end(self, patience: float) -> None:
        """End the worker, whatever it does, after so many seconds."""
        self._process.join(max(0.0, patience))
        self._process.kill()
        self._process.join()
        self._connection.close()
