"""Failures of trainings, their causes and who is to blame, grouped by reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bo_act.errors import BoActError, NetworkError, StorageError
from bo_act.user_code.failures import Blame, Failure

_SHOWN = 3  # functions named per group


def failure_of(error: BaseException, *, objective: bool = False) -> Failure | None:
    """Return why a training failed, and who is to blame.

    Args:
        error: what ended the training.
        objective: whether the user's own training function ran; all errors are then its own.

    Returns:
        None if neither the machine nor the user's code is to blame.
    """
    failure = Failure.of(error)
    if failure.blame == "machine":
        return failure
    if isinstance(error, BoActError):
        users = (
            not isinstance(error, StorageError) if objective else isinstance(error, NetworkError)
        )
        return failure if users else None
    if objective or failure.file:
        return failure
    # Only for libraries: a lost device shows in many ways.
    return Failure.of(error, blame="machine") if isinstance(error, RuntimeError | OSError) else None


@dataclass(frozen=True)
class FailureGroup:
    """Failures of one reason.

    Attributes:
        reason: on one line, with the user's file and line if known.
        phase: ``search``, ``confirmation`` or ``build``.
        count: how many.
        activations: the functions that were trained, each once.
        trials: their numbers, if they are trials.
        type, message, file, line, blame: of the first of them, see ``Failure``.
    """

    reason: str
    phase: str
    count: int
    activations: tuple[str, ...]
    trials: tuple[int, ...]
    type: str
    message: str
    file: str
    line: int | None
    blame: Blame

    @property
    def functions(self) -> str:
        """The functions as text."""
        more = len(self.activations) - _SHOWN
        shown = ", ".join(self.activations[:_SHOWN])
        return f"{shown} and {more} more" if more > 0 else shown


Failed = tuple[Failure, str, int | None, int]
"""A failure, the function, the number of the trial, and how often."""


def group(phase: str, failed: Iterable[Failed]) -> list[FailureGroup]:
    """Group failures by their reason, the most frequent first.

    Failures at one line of the user's code have one reason; others are grouped by their messages,
    ignoring numbers such as missing bytes.
    """
    kinds: dict[tuple[Any, ...], list[Failed]] = {}
    for entry in failed:
        failure = entry[0]
        where = (
            (failure.file, failure.line) if failure.file else re.sub(r"\d+", "#", failure.message)
        )
        kinds.setdefault((failure.type, where), []).append(entry)
    groups = []
    for members in kinds.values():
        first = members[0][0]
        groups.append(
            FailureGroup(
                str(first),
                phase,
                sum(times for *_, times in members),
                tuple(dict.fromkeys(text for _, text, _, _ in members if text)),
                tuple(number for _, _, number, _ in members if number is not None),
                **first.as_attribute(),
            )
        )
    return sorted(groups, key=lambda entry: -entry.count)


def failures_of_runs(phase: str, runs: Iterable[Mapping[str, Any]]) -> list[FailureGroup]:
    """Return the failures of runs with ``activation`` and ``failure`` that are not trials."""
    read = [(Failure.read(run.get("failure")), str(run.get("activation", ""))) for run in runs]
    return group(phase, [(failure, text, None, 1) for failure, text in read if failure])
