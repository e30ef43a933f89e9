"""Heartbeats: how a process of another machine or container is known to be alive.

A process that can be looked up by its number is (``Owner``). Any other says that it is alive, a few
times in each grace period; one that has been silent for the whole of it is taken for dead.

Clocks of two machines are never compared. Who judges goes by how long nothing has changed while it
listened, by its own clock that nobody sets; and by the age of the last heartbeat, by the one clock
of the storage: that of the database server, or of the machine that has the disk. The age makes it
fast for one that has just begun to listen. Alone it is not enough, since that clock may jump.
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

from bo_act.optuna_internals import id_of
from bo_act.study.storage.database import is_lost
from bo_act.study.storage.heartbeat_places import Beats, beats_of
from bo_act.study.storage.owner import GRACE, OWNER, Owner, TrialTaken

BEATS = 6  # in a grace period

_LONGEST = 600.0  # seconds from one to the next

_STEADY = 5.0  # seconds between two looks within which one may be late, in a short grace period

_log = logging.getLogger("bo_act")


# --- speaking -------------------------------------------------------------------------------


class Heartbeat:
    """Says that this process is alive while a trial runs.

    Args:
        study: of the trial.
        trial_id: of the trial, in its storage.
        grace: seconds, some times in each of which it says so.
    """

    def __init__(self, study: optuna.Study, trial_id: int, *, grace: float = GRACE) -> None:
        self._beats, self._trial_id = beats_of(study), trial_id
        self._pause = min(grace / BEATS, _LONGEST)

    def begin(self) -> None:
        """Say it now and from now on."""
        if self._beats is not None:
            _pulse.begin(self._beats, self._trial_id, self._pause)

    def end(self, *, mine: bool = True) -> None:
        """Say it no more; nothing happens where it is not said.

        Args:
            mine: whether nobody else says it of the same trial by now.
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
    """The thread that speaks for all trials that run in this process."""

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
        with self._changed:  # not between the thread's look at its trials and a beat
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
            # Who only listens between two long trainings cannot tell silence from absence.
            for beats in heard.values():
                with suppress(Exception):  # the storage is away; who needs the answer will say so
                    _ear(beats).hear(beats.read())

    def _beat(self, beats: Beats, trial_id: int) -> None:
        """Say it; a full disk or a server that is away may be there again the next time."""
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
    """How long nothing was heard of the process that runs a trial.

    Attributes:
        seconds: since the last heartbeat, by the storage's clock; None before the first.
        left: seconds after which it is taken for dead unless it speaks, where it is not known to
            be alive; None where silence tells nothing.
    """

    seconds: float | None = None
    left: float | None = None

    @property
    def is_too_long(self) -> bool:
        """Whether the process is to be taken for dead."""
        return self.left is not None and self.left <= 0


def silences(study: optuna.Study, trials: Iterable[FrozenTrial]) -> dict[int, Silence]:
    """Return how long nothing was heard of running trials, by their numbers.

    A process that has died is known to have only after others listened for a while: where this is
    called again and again, or while a trial runs here.

    Args:
        study: of the trials.
        trials: some of them; those that do not run, or say nothing of an owner, are left out.
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
    """Remove the heartbeats of trials that have ended without their process, which died over them.

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
    """The last that was heard of a trial.

    Attributes:
        mark: what changes with each heartbeat; None before the first.
        since: when it was first heard, by ``time.monotonic()``.
        gap: the longest time since then in which nobody listened.
    """

    mark: Hashable
    since: float
    gap: float = 0.0


class _Ear:
    """What this process has heard in one storage, and since when."""

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}
        self._last = 0.0
        self._lock = threading.Lock()

    def hear(
        self, beats: Mapping[int, tuple[Hashable, float]], running: Iterable[int] | None = None
    ) -> None:
        """Note what is heard now.

        Args:
            beats: as ``Beats.read`` returns them.
            running: ids of trials to listen to, whether they have spoken or not; all others that
                are silent are forgotten.
        """
        with self._lock:
            now = time.monotonic()
            gap, self._last = now - self._last, now
            kept = self._heard if running is None else running
            before, self._heard = self._heard, {}
            for trial in {*kept, *beats}:
                mark, _ = beats.get(trial, (None, None))
                found = before.get(trial)
                if found is None or found.mark != mark:
                    found = _Heard(mark, now)
                else:
                    found.gap = max(found.gap, gap)
                self._heard[trial] = found

    def listened(self, trial: int, longest: float) -> float:
        """Return for how many seconds nothing has changed while somebody listened.

        Args:
            trial: its id.
            longest: seconds between two looks; where nobody listened for longer, as when this
                process was stopped, time begins anew: those who were to speak may have been
                stopped as well.
        """
        with self._lock:
            found = self._heard.get(trial)
            if found is None:  # of another study in the storage, which was looked at meanwhile
                return 0.0
            if found.gap > max(longest, _STEADY):
                found.since, found.gap = self._last, 0.0
            return self._last - found.since


_pulse = _Pulse()
_ears: dict[str, _Ear] = {}


def _ear(beats: Beats) -> _Ear:
    return _ears.setdefault(beats.name, _Ear())


def _begin_anew() -> None:
    # A forked process has neither the thread nor the trials, but perhaps a lock that was taken.
    global _pulse  # noqa: PLW0603
    _pulse = _Pulse()
    _ears.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
