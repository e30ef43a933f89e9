"""Heartbeats: how workers know that a process on another machine or in a container is alive.

A process on the same machine is looked up by its number (``Owner``). Any other sends a few
heartbeats per grace period, and is considered dead after a grace period without one.

Clocks of two machines are never compared. A listener measures two times: how long it has heard no
new heartbeat, by its own monotonic clock; and the age of the last heartbeat, by the storage's clock
(of the database server, or of the machine with the disk). With the age, a new listener need not
wait a whole grace period. The age alone is not enough, since that clock may jump.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.dependencies.optuna_internals import id_of
from bo_act.study.storage.backends.database import is_lost
from bo_act.study.storage.backends.heartbeats import Beats, beats_of
from bo_act.study.storage.owner import GRACE, OWNER, Owner, TrialTaken

BEATS = 6  # in a grace period

_LONGEST = 600.0  # seconds between two heartbeats

_STEADY = 5.0  # seconds between two polls that count as listening, in a short grace period

_log = logging.getLogger("bo_act")


# --- sending --------------------------------------------------------------------------------


class Heartbeat:
    """Sends heartbeats of this process while a trial runs.

    Args:
        study: of the trial.
        trial_id: of the trial, in its storage.
        grace: grace period in seconds, with several heartbeats in each.
    """

    def __init__(self, study: optuna.Study, trial_id: int, *, grace: float = GRACE) -> None:
        self._beats, self._trial_id = beats_of(study), trial_id
        self._pause = min(grace / BEATS, _LONGEST)

    def begin(self) -> None:
        """Send a heartbeat now, and regularly from now on."""
        if self._beats is not None:
            _pulse.begin(self._beats, self._trial_id, self._pause)

    def end(self, *, mine: bool = True) -> None:
        """Stop sending; no effect unless started.

        Args:
            mine: whether this process still owns the trial.
        """
        if self._beats is not None and _pulse.end(self._beats, self._trial_id) and mine:
            self._beats.end(self._trial_id)

    def __enter__(self) -> Heartbeat:
        self.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end(mine=not isinstance(error, TrialTaken))


class _Pulse:
    """The thread that sends heartbeats for all trials of this process."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._trials: dict[tuple[str, int], tuple[Beats, float]] = {}
        self._thread: threading.Thread | None = None
        self._pause = 0.0
        self._failed = False

    def begin(self, beats: Beats, trial_id: int, pause: float) -> None:
        with self._changed:
            self._trials[beats.name, trial_id] = beats, pause
            self._beat(beats, trial_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, daemon=True)
                self._thread.start()
            elif pause < self._pause:
                self._changed.notify()

    def end(self, beats: Beats, trial_id: int) -> bool:
        with self._changed:  # so that the thread sends no heartbeat afterwards
            return self._trials.pop((beats.name, trial_id), None) is not None

    def _go_on(self) -> None:
        while True:
            with self._changed:
                if not self._trials:
                    self._thread = None
                    return
                self._pause = min(pause for _, pause in self._trials.values())
                self._changed.wait(self._pause)
                for (_, trial_id), (beats, _) in self._trials.items():
                    self._beat(beats, trial_id)
                heard = {beats.name: beats for beats, _ in self._trials.values()}
            # Listen during long trainings, too: silence counts only while somebody listens.
            for beats in heard.values():
                with suppress(Exception):  # the storage is away, which other calls report
                    _ear(beats).hear(beats.read())

    def _beat(self, beats: Beats, trial_id: int) -> None:
        """Send a heartbeat; after an error, the next one may succeed."""
        try:
            beats.beat(trial_id)
        except Exception as error:
            if not self._failed and not is_lost(error):
                _log.warning(
                    "other workers will consider this one dead: its heartbeat cannot be written "
                    "(%s: %s)",
                    type(error).__name__,
                    error,
                )
            self._failed = True
        else:
            self._failed = False


# --- listening ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Silence:
    """Time since the last heartbeat of a trial's process.

    Attributes:
        seconds: since the last heartbeat, by the storage's clock; None before the first.
        left: seconds until the process is considered dead without a heartbeat; None if it sends
            none.
    """

    seconds: float | None = None
    left: float | None = None

    @property
    def is_too_long(self) -> bool:
        """Whether the process is considered dead."""
        return self.left is not None and self.left <= 0


def silences(study: optuna.Study, trials: Iterable[FrozenTrial]) -> dict[int, Silence]:
    """Return the time since the last heartbeats of running trials, by their numbers.

    To find a dead process this one must listen for a while: call this repeatedly, or while a trial
    runs here.

    Args:
        study: of the trials.
        trials: some of them; those that are not running or have no owner are left out.
    """
    beats = beats_of(study)
    owners = [
        (trial, owner)
        for trial in trials
        if trial.state == TrialState.RUNNING
        and (owner := Owner.read(trial.system_attrs.get(OWNER))) is not None
    ]
    if beats is None or not owners:
        return {trial.number: Silence() for trial, _ in owners}
    heard, ear = beats.read(patient=True), _ear(beats)
    ear.hear(heard, [id_of(trial) for trial, _ in owners])
    return {trial.number: _silence(id_of(trial), owner, heard, ear) for trial, owner in owners}


def forget_ended(study: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
    """Remove the heartbeats of ended trials whose process died.

    Args:
        study: of the trials.
        trials: all of the study.
    """
    if beats := beats_of(study):
        left = beats.read(patient=True)
        for trial in trials:
            if trial.state.is_finished() and id_of(trial) in left:
                beats.end(id_of(trial))


def _silence(
    trial_id: int, owner: Owner, heard: Mapping[int, tuple[Hashable, float]], ear: _Ear
) -> Silence:
    _, age = heard.get(trial_id, (None, None))
    grace = owner.patience
    if grace is None:
        return Silence(age)
    pause = grace / BEATS
    listened = ear.listened(trial_id, 2 * pause)
    return Silence(age, max(2 * pause - listened, grace - max(listened, age or 0.0)))


@dataclass
class _Heard:
    """The last heartbeat of a trial.

    Attributes:
        mark: changes with each heartbeat; None before the first.
        since: when it was first heard, by ``time.monotonic()``.
        gap: the longest time since then in which nobody listened.
    """

    mark: Hashable
    since: float
    gap: float = 0.0


class _Ear:
    """The heartbeats that this process has heard in one storage, and when."""

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}
        self._last = 0.0
        self._lock = threading.Lock()

    def hear(
        self, beats: Mapping[int, tuple[Hashable, float]], running: Iterable[int] | None = None
    ) -> None:
        """Record the current heartbeats.

        Args:
            beats: as ``Beats.read`` returns them.
            running: ids of trials to listen to, with or without a heartbeat so far; other silent
                trials are forgotten.
        """
        with self._lock:
            now = time.monotonic()
            gap, self._last = now - self._last, now
            listened_to = self._heard if running is None else running
            before, self._heard = self._heard, {}
            for trial in {*listened_to, *beats}:
                mark, _ = beats.get(trial, (None, None))
                heard = before.get(trial)
                if heard is None or heard.mark != mark:
                    heard = _Heard(mark, now)
                else:
                    heard.gap = max(heard.gap, gap)
                self._heard[trial] = heard

    def listened(self, trial: int, longest: float) -> float:
        """Return the seconds without a new heartbeat while this process listened.

        Args:
            trial: its id.
            longest: seconds between two polls. After a longer gap, for example if this process was
                suspended, counting starts again: the other may have been suspended as well.
        """
        with self._lock:
            heard = self._heard.get(trial)
            if heard is None:  # another study in this storage was polled meanwhile
                return 0.0
            if heard.gap > max(longest, _STEADY):
                heard.since, heard.gap = self._last, 0.0
            return self._last - heard.since


_pulse = _Pulse()
_ears: dict[str, _Ear] = {}


def _ear(beats: Beats) -> _Ear:
    return _ears.setdefault(beats.name, _Ear())


def _begin_anew() -> None:
    # A forked process has neither the thread nor the trials, but perhaps a held lock.
    global _pulse  # noqa: PLW0603
    _pulse = _Pulse()
    _ears.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
