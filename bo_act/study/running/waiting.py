"""The running trials that a worker waits for, and until when."""

from __future__ import annotations

import optuna

from bo_act.events import Awaited
from bo_act.study.storage.heartbeat import BEATS, silences
from bo_act.study.storage.owner import OWNER, Owner
from bo_act.study.storage.study_view import StudyView


def awaited(study: optuna.Study) -> list[Awaited]:
    """Return the running trials that an idle worker waits for."""
    view = StudyView.of(study)
    running = [trial for trial in view.running if trial.number not in view.abandoned]
    silent = silences(study, running)
    awaited_trials = []
    for trial in running:
        owner = Owner.read(trial.system_attrs.get(OWNER))
        silence = silent.get(trial.number)
        free = f"to release it: bo-act release STUDY {trial.number}"
        kind, text = "mute", f"of an unknown process; {free}"
        if owner is not None and silence is not None:
            kind, text = _state(owner, silence.seconds, silence.left, free)
            text = f"of {owner}, {text}"
        text = f"waiting for trial {trial.number} {text}"
        awaited_trials.append(Awaited(trial.number, kind, text))
    return awaited_trials


def _state(owner: Owner, seconds: float | None, left: float | None, free: str) -> tuple[str, str]:
    usual = 2 * (owner.patience or 0.0) / BEATS
    if owner.is_alive():
        if seconds is None or seconds <= (owner.patience or 0.0):
            return "alive", "a process that is alive on this machine"
        return "silent", f"alive here but without a heartbeat for {seconds:.0f} s; {free} --force"
    if seconds is not None and seconds <= usual:
        return "alive", f"last heartbeat {seconds:.0f} s ago"
    if left is None:
        return "mute", f"which sends no heartbeats; {free}"
    heard = "no heartbeat so far" if seconds is None else f"no heartbeat for {seconds:.0f} s"
    return "silent", f"{heard}; taken over in {max(0.0, left):.0f} s unless a heartbeat arrives"
