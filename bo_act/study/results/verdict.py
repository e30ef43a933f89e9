"""What a confirmation says in words: to believe or not, and what it must not be taken for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from bo_act.metrics import ACCURACY, Metric
from bo_act.statistics import holm
from bo_act.tasks.configuration import REFERENCE

if TYPE_CHECKING:
    from bo_act.study.results.confirmation import Confirmed, Interval
    from bo_act.tasks.failures import FailureGroup


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


def winner(confirmed: Sequence[Confirmed], metric: Metric = ACCURACY) -> Confirmed | None:
    """Return the found function that is best on validation data, None where none was found.

    To choose by the test set would flatter it.
    """
    found = [row for row in confirmed if row.role == "found"]
    return max(found, key=lambda row: metric.sign * row.validation.mean, default=None)


def judged(gain: Interval, metric: Metric = ACCURACY) -> Literal["better", "worse", "open"]:
    """Tell whether a difference leaves out zero, and on which side."""
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high:
        return "open"
    return "better" if metric.sign * gain.low > 0 else "worse"


def verdict(confirmed: Sequence[Confirmed], metric: Metric = ACCURACY) -> Verdict | None:
    """Judge a confirmation; None where no function that was found has been confirmed."""
    best = winner(confirmed, metric)
    if best is None:
        return None
    note = _unequal(confirmed)
    gain = best.minus_relu
    if best.diverged == best.seeds:
        text = (
            "With fresh seeds, all trainings of the best functions diverged, so nothing is "
            "confirmed: the search's values, or its seed, were luck."
        )
        return Verdict("open", best, text, note)
    if gain is None and any(row.activation == REFERENCE for row in confirmed):
        text = f"ReLU itself has the best fresh validation {metric.name} of all confirmed "
        "functions."
        return Verdict("reference", best, text, note)
    if gain is None:
        text = (
            f"{best.activation} is the best by validation; ReLU's trainings failed, so there is "
            "no comparison."
        )
        return Verdict("open", best, text, note)
    unit = f"points of {best.of(metric)}" if metric.in_percent else f"in {best.of(metric)}"
    what = f"{with_interval(gain, metric, signed=True)} {unit} against ReLU"
    shown = f"{what} (95%, {sampled([gain])})"
    name = f"{best.activation}, the best by validation,"
    if gain.low is None or gain.high is None:
        text = f"{name} has {what}; one seed gives no interval (confirm.seeds)."
        return Verdict("open", best, text, note)
    kind = judged(gain, metric)
    if kind != "open":
        return Verdict(kind, best, f"{name} is {kind} than ReLU: {shown}.", note)
    text = f"{name} has {shown}: the interval includes zero, so nothing is confirmed."
    return Verdict("open", best, text, note)


def with_interval(value: Interval, metric: Metric = ACCURACY, *, signed: bool = False) -> str:
    """Return a value, or a difference (``signed``), with half its interval, as people read it."""
    return metric.interval(value.mean, value.low, value.high, signed=signed)


class Sampled(Protocol):
    """What says of its interval what it takes for a sample; see ``Interval``."""

    @property
    def over(self) -> str:
        """``seeds`` or ``both``."""
        ...

    @property
    def intervals(self) -> Mapping[str, tuple[float, float] | None]:
        """Each alone."""
        ...


def sampled(of: Sequence[Sampled]) -> str:
    """Say what intervals are over: of what other samples the mean would be in them."""
    if all(one.over == "both" for one in of):
        return "over seeds and test examples"
    if not any(one.intervals for one in of):
        return "over seeds alone"
    if any(one.over == "both" for one in of):
        return "over seeds, and test examples where that is wider"
    return "over seeds, which is wider than with test examples"


def _unequal(confirmed: Sequence[Confirmed]) -> str:
    """Say with how many settings ReLU was tried, where settings are searched."""
    relu = next((row for row in confirmed if row.activation == REFERENCE), None)
    if relu is None or not relu.settings:
        return ""
    times = "once" if relu.tried == 1 else f"{relu.tried} times"
    return (
        f"Settings are searched too, and ReLU was tried {times}: with its own tuning it may be "
        "better than here."
    )


def caveats(confirmed: Sequence[Confirmed], metric: Metric = ACCURACY) -> list[str]:
    """Return what is to be said beside the verdict, a sentence or two each."""
    best = winner(confirmed, metric)
    if best is None:
        return []
    said = []
    if best.searched is not None:
        shrunk = metric.sign * (best.searched - best.validation.mean)
        amount = metric.difference(abs(shrunk)).lstrip("+")
        if metric.in_percent:
            lucky = "were luck of the seed it was chosen by"
            amount = f"{amount} points"
        else:
            lucky = "was luck of the seed it was chosen by"
        said.append(
            f"Shrinkage: {best.activation} had {metric.text(best.searched)} validation "
            f"{metric.name} in the search and has {metric.text(best.validation.mean)} with fresh "
            f"seeds: {amount} {lucky if shrunk > 0 else 'less than it deserved'}."
        )
    tested = {name: one for name, one in best.minus.items() if one.p is not None}
    if tested:
        adjusted = dict(zip(tested, holm([one.p or 0.0 for one in tested.values()]), strict=True))
        pairs = "; ".join(
            f"{name} {with_interval(one, metric, signed=True)}, p = {one.p:.3f}, "
            f"adjusted {adjusted[name]:.3f}"
            for name, one in tested.items()
        )
        over = sampled(list(tested.values()))
        said.append(
            f"{best.activation} against (paired; p: how often as large a difference would be seen "
            f"by chance {over}, on these training data; adjusted by Holm): {pairs}."
        )
        many = sum(len(row.minus) for row in confirmed if row.role == "found")
        said.append(
            f"The table makes {many} comparisons: {0.05 * many:.1f} of them would exclude zero by "
            "chance alone."
        )
    trained = [row for row in confirmed if row.diverged < row.seeds and row.test.low is not None]
    if any(not row.test.intervals for row in trained):
        said.append(
            f"The intervals cover seeds only, for this {best.on} set, since the runs have no "
            "values per example: over other examples too they would be wider."
        )
    return said


def notes_on_failures(
    groups: Sequence[FailureGroup], confirmed: Sequence[Confirmed], *, seeds: int
) -> list[str]:
    """Return what failed trainings of a confirmation mean for what it says.

    Args:
        groups: what failed in it.
        confirmed: what did not.
        seeds: how many it was to have.
    """
    if not groups:
        return []
    reasons = "; ".join(f"{one.functions}: {one.reason}" for one in groups[:2])
    count = sum(one.count for one in groups)
    notes = [f"Failed trainings of the confirmation: {count} ({reasons})."]
    there = {row.activation for row in confirmed}
    without = sorted({text for one in groups for text in one.activations} - there)
    if confirmed and without:
        missing = ", ".join(without)
        notes.append(f"Not confirmed, because all trainings failed: {missing}.")
    if confirmed and confirmed[0].seeds < seeds:
        notes.append(
            f"The table is over the {confirmed[0].seeds} of {seeds} seeds that all rows share; "
            "the same command repeats the failed trainings."
        )
    return notes
