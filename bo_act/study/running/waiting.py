"""Whom a worker waits for, and until when."""

from __future__ import annotations

from dataclasses import dataclass

import optuna

from bo_act.study.storage.heartbeat import BEATS, silences
from bo_act.study.storage.owner import OWNER, Owner
from bo_act.study.storage.trials import StudyView


@dataclass(frozen=True)
class Awaited:
    """A running trial that others wait for.

    Attributes:
        trial: its number.
        kind: ``alive``, where its process is known to be; ``silent``, where nothing was heard of it
            for longer than it usually takes; ``mute``, where it never says whether it is alive.
        text: whom it is waited for and until when, as people read it.
    """

    trial: int
    kind: str
    text: str


def awaited(study: optuna.Study) -> list[Awaited]:
    """Return the trials that whoever has nothing to do waits for."""
    view = StudyView.of(study)
    running = [trial for trial in view.running if trial.number not in view.abandoned]
    silent = silences(study, running)
    found = []
    for trial in running:
        owner = Owner.read(trial.system_attrs.get(OWNER))
        told = silent.get(trial.number)
        free = f"to give it back: bo-act release STUDY {trial.number}"
        kind, said = "mute", f"of which nothing says who runs it; {free}"
        if owner is not None and told is not None:
            kind, said = _state(owner, told.seconds, told.left, free)
            said = f"of {owner}, {said}"
        found.append(Awaited(trial.number, kind, f"waiting for trial {trial.number} {said}"))
    return found


def _state(owner: Owner, seconds: float | None, left: float | None, free: str) -> tuple[str, str]:
    usual = 2 * (owner.patience or 0.0) / BEATS
    if owner.is_alive():
        if seconds is None or seconds <= (owner.patience or 0.0):
            return "alive", "a process that is alive on this machine"
        return "silent", f"alive here but silent for {seconds:.0f} s; {free} --force"
    if seconds is not None and seconds <= usual:
        return "alive", f"heard {seconds:.0f} s ago"
    if left is None:
        return "mute", f"which never says whether it is alive; {free}"
    heard = "not heard so far" if seconds is None else f"silent for {seconds:.0f} s"
    return "silent", f"{heard}; taken over in {max(0.0, left):.0f} s unless it speaks"
