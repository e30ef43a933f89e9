"""Heartbeats: how a worker on another machine is known to be alive.

On one machine a process is looked up by its number. In a database that several machines share, a
worker writes that it is alive, a few times in each grace period; one that has been silent for that
long is taken for dead.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

import optuna
from optuna.trial import FrozenTrial, TrialState

from bo_act.study.claims import OWNER, Owner
from bo_act.study.database import database_of

BEATS = 6  # in a grace period


class Heartbeat:
    """Says that this process is alive, from a thread, while a trial runs."""

    def __init__(self, study: optuna.Study, trial_id: int, *, grace: float) -> None:
        self._database = database_of(study)
        self._trial_id = trial_id
        self._pause = grace / BEATS
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        if self._database is not None:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._database is not None:
            self._thread.join()

    def _beat(self) -> None:
        while self._database is not None:
            self._database.beat(self._trial_id)
            if self._over.wait(self._pause):
                return


def silent(study: optuna.Study, trials: list[FrozenTrial]) -> frozenset[int]:
    """Return the numbers of running trials of which nothing was heard for too long.

    When a server comes back after a while, everybody has been silent: they get time to speak
    first.
    """
    database = database_of(study)
    owners = [
        (trial, owner)
        for trial in trials
        if trial.state == TrialState.RUNNING
        and (owner := Owner.read(trial.system_attrs.get(OWNER))) is not None
        and owner.grace is not None
        and not owner.is_here
    ]
    if database is None or not owners:
        return frozenset()
    silence = database.silence(study._study_id)
    known = time.monotonic() - database.since
    found = set()
    for trial, owner in owners:
        grace = float(owner.grace or 0)
        begun = trial.datetime_start
        # Of one that died before its first heartbeat there is only when it began.
        seconds = silence.get(trial._trial_id, time.time() - begun.timestamp() if begun else 0.0)
        if seconds > grace and known > 2 * grace / BEATS:
            found.add(trial.number)
    return frozenset(found)
