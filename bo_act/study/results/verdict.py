"""What a confirmation says, in words: to believe or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bo_act.study.results.confirmation import Confirmed, Interval


REFERENCE = "relu(x)"
"""What functions are measured by."""


@dataclass(frozen=True)
class Verdict:
    """A sentence on the best function found, and what has to be known beside it.

    Attributes:
        kind: ``better`` or ``worse`` than ReLU beyond the interval; ``open`` where the interval
            includes zero or there is none; ``reference`` where ReLU itself is the best.
        winner: of the functions found the best one; see ``winner``.
        text: for people.
        note: what weakens it; ``""`` where nothing does.
    """

    kind: Literal["better", "worse", "open", "reference"]
    winner: Confirmed
    text: str
    note: str = ""


def winner(confirmed: Sequence[Confirmed]) -> Confirmed | None:
    """Return the found function with the best fresh validation accuracy, None where none was found.

    To choose by test accuracy would flatter it.
    """
    found = [row for row in confirmed if row.role == "found"]
    return max(found, key=lambda row: row.validation.mean, default=None)


def verdict(confirmed: Sequence[Confirmed]) -> Verdict | None:
    """Judge a confirmation; None where no function that was found has been confirmed."""
    best = winner(confirmed)
    if best is None:
        return None
    note = _unequal(confirmed)
    gain = best.minus_relu
    if best.diverged == best.seeds:
        text = (
            "With fresh seeds every training of the functions found diverged, so nothing is "
            "confirmed: the search's values were luck, or its seed was."
        )
        return Verdict("open", best, text, note)
    if gain is None and any(row.activation == REFERENCE for row in confirmed):
        text = "Of the functions found, ReLU itself has the best fresh validation accuracy."
        return Verdict("reference", best, text, note)
    if gain is None:
        text = (
            f"{best.activation} is the best of them by validation; ReLU's trainings failed, so "
            "there is nothing to compare with."
        )
        return Verdict("open", best, text, note)
    shown = f"{with_interval(gain, '{:+.2f}')} points of test accuracy against ReLU"
    name = f"{best.activation}, the best of them by validation,"
    if gain.low is None or gain.high is None:
        text = f"{name} has {shown}; one seed gives no interval (confirm.seeds)."
        return Verdict("open", best, text, note)
    if gain.low > 0:
        return Verdict("better", best, f"{name} is better than ReLU: {shown}.", note)
    if gain.high < 0:
        return Verdict("worse", best, f"{name} is worse than ReLU: {shown}.", note)
    text = f"{name} has {shown}: the interval includes zero, so nothing is confirmed."
    return Verdict("open", best, text, note)


def with_interval(value: Interval, form: str) -> str:
    """Return a fraction in per cent with half its interval, as people read it."""
    shown = form.format(100 * value.mean)
    if value.low is None or value.high is None:
        return shown
    return f"{shown} ±{50 * (value.high - value.low):.2f}"


def _unequal(confirmed: Sequence[Confirmed]) -> str:
    """Say with how many settings ReLU was tried, where settings are searched."""
    relu = next((row for row in confirmed if row.activation == REFERENCE), None)
    if relu is None or not relu.settings:
        return ""
    times = "once" if relu.tried == 1 else f"{relu.tried} times"
    return (
        f"Settings are searched as well, and ReLU was tried {times}: tuned alone, it may be "
        "better than here."
    )
