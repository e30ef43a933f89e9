"""The verdict of a confirmation in words, with its caveats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from bo_act.metrics import ACCURACY, Metric
from bo_act.statistics import holm, shown_p
from bo_act.tasks.configuration import REFERENCE

if TYPE_CHECKING:
    from bo_act.study.results.confirmed import Confirmed, Difference, Interval
    from bo_act.tasks.failures import FailureGroup


@dataclass(frozen=True)
class Verdict:
    """A sentence on the best function, and its caveat.

    Attributes:
        kind: ``better`` or ``worse`` than ReLU if the interval excludes zero; ``open`` if it
            includes zero, or there is none, or all seeds differ alike; ``reference`` if ReLU itself
            is the best.
        winner: the best of the found functions; see ``winner``.
        text: for people.
        note: the caveat, or ``""``.
    """

    kind: Literal["better", "worse", "open", "reference"]
    winner: Confirmed
    text: str
    note: str = ""


def winner(confirmed: Sequence[Confirmed], metric: Metric = ACCURACY) -> Confirmed | None:
    """Return the found function that is best on validation data; None if none was found.

    Choosing by the test set would add a selection bias.
    """
    candidates = [row for row in confirmed if row.role == "found"]
    return max(candidates, key=lambda row: metric.sign * row.validation.mean, default=None)


def judged(gain: Difference, metric: Metric = ACCURACY) -> Literal["better", "worse", "open"]:
    """Tell whether a difference excludes zero, and on which side.

    Equal differences with all seeds have no spread, and so tell nothing of chance.
    """
    if gain.low is None or gain.high is None or gain.low <= 0 <= gain.high or gain.p is None:
        return "open"
    return "better" if metric.sign * gain.low > 0 else "worse"


def verdict(confirmed: Sequence[Confirmed], metric: Metric = ACCURACY) -> Verdict | None:
    """Return the verdict of a confirmation; None if it has no found function."""
    best = winner(confirmed, metric)
    if best is None:
        return None
    note = _unequal(confirmed)
    gain = best.minus_relu
    if best.diverged == best.seeds:
        text = (
            "With fresh seeds, all training runs of the best functions diverged, so nothing is "
            "confirmed: the values of the search were luck of its seed."
        )
        return Verdict("open", best, text, note)
    if gain is None and any(row.activation == REFERENCE for row in confirmed):
        text = f"ReLU itself has the best fresh validation {metric.name} of the functions found."
        return Verdict("reference", best, text, note)
    if gain is None:
        text = (
            f"{best.activation} is the best by validation; ReLU's training runs failed, so there "
            "is no comparison."
        )
        return Verdict("open", best, text, note)
    unit = f"points of {best.of(metric)}" if metric.in_percent else f"in {best.of(metric)}"
    difference = f"{with_interval(gain, metric, signed=True)} {unit} against ReLU"
    shown = f"{difference} (95% interval {sampled([gain])})"
    name = f"{best.activation}, the best by validation,"
    if gain.low is None or gain.high is None:
        text = f"{name} has {difference}; one seed gives no interval (confirm.seeds)."
        return Verdict("open", best, text, note)
    kind = judged(gain, metric)
    if kind != "open":
        return Verdict(kind, best, f"{name} is {kind} than ReLU: {shown}.", note)
    if gain.p is None and gain.mean:
        text = (
            f"{name} has {difference} with every seed alike: without any spread, seeds do not tell "
            "how much is chance, so nothing is confirmed."
        )
        return Verdict("open", best, text, note)
    text = f"{name} has {shown}: the interval includes zero, so nothing is confirmed."
    return Verdict("open", best, text, note)


def with_interval(value: Interval, metric: Metric = ACCURACY, *, signed: bool = False) -> str:
    """Return a value or a ``signed`` difference, with half its interval, for people."""
    return metric.interval(value.mean, value.low, value.high, signed=signed)


class Sampled(Protocol):
    """Anything with an interval over samples; see ``Interval``."""

    @property
    def over(self) -> str:
        """``seeds`` or ``both``."""
        ...

    @property
    def intervals(self) -> Mapping[str, tuple[float, float] | None]:
        """One for each kind of sample."""
        ...


def sampled(of: Sequence[Sampled]) -> str:
    """Return the samples that intervals are over, as words."""
    if all(part.over == "both" for part in of):
        return "over seeds and test examples"
    if not any(part.intervals for part in of):
        return "over seeds alone"
    if any(part.over == "both" for part in of):
        return "over seeds, or over seeds and test examples if that is wider"
    return "over seeds, wider than over seeds and test examples"


def _unequal(confirmed: Sequence[Confirmed]) -> str:
    """Return a caveat on ReLU's tuning, if settings are searched."""
    relu = next((row for row in confirmed if row.activation == REFERENCE), None)
    if relu is None or not relu.settings:
        return ""
    times = "once" if relu.tried == 1 else f"{relu.tried} times"
    return (
        f"Other parameters are searched too, and ReLU was tried {times}: tuned on its own, it may "
        "be better than here."
    )


def caveats(confirmed: Sequence[Confirmed], metric: Metric = ACCURACY) -> list[str]:
    """Return the caveats of a verdict, a sentence or two each."""
    best = winner(confirmed, metric)
    if best is None:
        return []
    sentences = []
    if best.searched is not None:
        shrunk = metric.sign * (best.searched - best.validation.mean)
        amount = metric.difference(abs(shrunk)).lstrip("+")
        if metric.in_percent:
            amount = f"{amount} points"
        changed = f"{amount} {'of selection bias' if shrunk > 0 else 'better than in the search'}"
        sentences.append(
            f"Shrinkage: {best.activation} had {metric.text(best.searched)} validation "
            f"{metric.name} in the search and has {metric.text(best.validation.mean)} with fresh "
            f"seeds: {changed if shrunk else 'the same as in the search'}."
        )
    tested = {name: gain for name, gain in best.minus.items() if gain.p is not None}
    if tested:
        adjusted = dict(zip(tested, holm([gain.p or 0.0 for gain in tested.values()]), strict=True))
        pairs = "; ".join(
            f"{name} {with_interval(gain, metric, signed=True)}, p {shown_p(gain.p or 0.0)}, "
            f"adjusted {shown_p(adjusted[name]).removeprefix('= ')}"
            for name, gain in tested.items()
        )
        over = sampled(list(tested.values()))
        sentences.append(
            f"Paired differences of {best.activation} from each baseline, with 95% intervals "
            f"{over} (p: how likely at least such a difference is by chance, for these training "
            f"data; adjusted by Holm): {pairs}."
        )
        found = [row for row in confirmed if row.role == "found"]
        comparisons = sum(len(row.minus) for row in found)
        sentences.append(
            f"Of the table's {comparisons} comparisons, {0.05 * comparisons:.1f} would exclude "
            "zero by chance alone."
        )
        if len(found) > 1:
            sentences.append(
                f"{best.activation} was chosen among {len(found)} by the validation values of "
                "the same training runs. Lucky seeds improve both; no p is adjusted for this."
            )
    trained = [row for row in confirmed if row.diverged < row.seeds and row.test.low is not None]
    if any(not row.test.intervals for row in trained):
        sentences.append(
            f"The intervals are over seeds only, for this {best.on} set, because the runs have no "
            "values per example; over further examples they would be wider."
        )
    return sentences


def notes_on_failures(
    groups: Sequence[FailureGroup], confirmed: Sequence[Confirmed], *, seeds: int
) -> list[str]:
    """Return the caveats of a confirmation with failed training runs.

    Args:
        groups: its failures.
        confirmed: its results.
        seeds: planned number of seeds.
    """
    if not groups:
        return []
    reasons = "; ".join(f"{group.functions}: {group.reason}" for group in groups[:2])
    count = sum(group.count for group in groups)
    notes = [f"Failed training runs of the confirmation: {count} ({reasons})."]
    confirmed_texts = {row.activation for row in confirmed}
    without = sorted({text for group in groups for text in group.activations} - confirmed_texts)
    if confirmed and without:
        missing = ", ".join(without)
        notes.append(f"Not confirmed, because all training runs failed: {missing}.")
    if confirmed and confirmed[0].seeds < seeds:
        notes.append(
            f"The table is over the {confirmed[0].seeds} of {seeds} seeds that all rows share; "
            "the same command repeats the failed training runs."
        )
    return notes
