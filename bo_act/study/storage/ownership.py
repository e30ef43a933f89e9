"""Ownership of trials: checking it, keeping it while writing, and giving it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from bo_act.dependencies.optuna_internals import id_of, storage_of
from bo_act.errors import WorkerError
from bo_act.study.storage.backends.heartbeats import beats_of
from bo_act.study.storage.backends.locks import study_lock
from bo_act.study.storage.heartbeat import BEATS, Silence, silences
from bo_act.study.storage.owner import OWNER, Owner, TrialTaken
from bo_act.study.storage.trials import own_trial, read_again


def check_mine(study: optuna.Study, trial: Trial) -> None:
    """Check that this process still owns a trial.

    A process that was suspended for longer than the grace period must not mix its results with the
    new owner's.

    Raises:
        TrialTaken: the trial has another owner, was released by hand, or was ended elsewhere.
    """
    frozen = read_again(study, trial)
    owner = Owner.read(frozen.system_attrs.get(OWNER))
    if OWNER in frozen.system_attrs and owner != Owner.me():
        event = "released by hand" if owner is None else f"taken over by {owner}"
    elif frozen.state.is_finished():
        event = f"ended by another process, as {frozen.state.name}"
    else:
        return
    raise TrialTaken(
        f"trial {trial.number} was {event} while this process ran it; this process discards its "
        "result and continues with another trial"
    )


@contextmanager
def keeping(study: optuna.Study, trial: Trial) -> Iterator[None]:
    """Keep the ownership of a trial while its result is written.

    Raises:
        TrialTaken: this process has lost the trial.
    """
    with study_lock(study):
        check_mine(study, trial)
        yield


def give_back(study: optuna.Study, trial: Trial) -> None:
    """Let another process take a trial over, unless one already has."""
    try:
        with keeping(study, trial):
            storage_of(study).set_trial_system_attr(id_of(trial), OWNER, None)
    except TrialTaken:
        pass


@dataclass(frozen=True)
class Released:
    """A trial that was released by hand.

    Attributes:
        study, trial: name and number.
        activation: its function; empty before it was chosen.
        host, pid: of its process; empty and None if unknown.
        silent: seconds since its last heartbeat; None before the first.
    """

    study: str
    trial: int
    activation: str
    host: str
    pid: int | None
    silent: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the content of ``--json``."""
        return asdict(self)


def release(study: optuna.Study, number: int, *, force: bool = False) -> Released:
    """Release a running trial by hand: the next worker takes it over, with its number.

    Args:
        study: of a study file.
        number: of the trial.
        force: even if its process is known to be alive. It finds out at its next write to the
            study, and leaves the trial.

    Raises:
        SearchError: the study has no such trial of its own.
        WorkerError: the trial is not running, was already released, or its process is alive.
    """
    with study_lock(study):
        trial = own_trial(study, number)
        if trial.state != TrialState.RUNNING:
            state = {
                TrialState.WAITING: "has not started",
                TrialState.FAIL: "has failed",
                TrialState.PRUNED: "was pruned",
            }.get(trial.state, "is complete")
            raise WorkerError(
                f"trial {number} of the study {study.study_name!r} {state}; only a running trial "
                "can be released"
            )
        attributes = trial.system_attrs
        owner = Owner.read(attributes.get(OWNER))
        if owner is None and OWNER in attributes:
            raise WorkerError(
                f"trial {number} of the study {study.study_name!r} was already released; the next "
                "worker takes it over"
            )
        silence = silences(study, [trial]).get(number, Silence())
        if owner is not None and not force:
            _refuse_the_living(number, owner, silence)
        storage_of(study).set_trial_system_attr(id_of(trial), OWNER, None)
        if beats := beats_of(study):
            beats.end(id_of(trial))
    return Released(
        study.study_name,
        number,
        str(trial.user_attrs.get("activation", "")),
        owner.host if owner else "",
        owner.pid if owner else None,
        silence.seconds,
    )


def _refuse_the_living(number: int, owner: Owner, silence: Silence) -> None:
    """Raise if a process is known to be alive, by its number or a recent heartbeat.

    Raises:
        WorkerError: it is alive.
    """
    pause = (owner.patience or 0.0) / BEATS
    if owner.is_alive():
        known = f"process {owner.pid} of this machine, which is alive"
    elif not owner.is_gone() and silence.seconds is not None and silence.seconds < 2 * pause:
        known = f"{owner}, whose last heartbeat was {silence.seconds:.0f} s ago"
    else:
        return
    raise WorkerError(
        f"trial {number} is run by {known}; end that process first, or give --force if you know "
        "that it is stuck"
    )
