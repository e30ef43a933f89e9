"""What a confirmation must not be taken for: luck of the search, and of many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bo_act.study.results.verdict import winner, with_interval

if TYPE_CHECKING:
    from bo_act.study.results.confirmation import Confirmed
    from bo_act.tasks.failures import FailureGroup


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many there are (Holm 1979), in the same order."""
    order = np.argsort(values)
    factors = len(values) - np.arange(len(values))
    adjusted = np.minimum(1.0, np.maximum.accumulate(np.asarray(values)[order] * factors))
    return [float(adjusted[place]) for place in np.argsort(order)]


def caveats(confirmed: Sequence[Confirmed]) -> list[str]:
    """Return what is to be said beside the verdict, a sentence or two each."""
    best = winner(confirmed)
    if best is None:
        return []
    said = []
    if best.searched is not None:
        shrunk = best.searched - best.validation.mean
        what = "were luck of the seed it was chosen by" if shrunk > 0 else "less than it deserved"
        said.append(
            f"Shrinkage: {best.activation} had {100 * best.searched:.2f}% validation accuracy in "
            f"the search and has {100 * best.validation.mean:.2f}% with fresh seeds: "
            f"{100 * abs(shrunk):.2f} points {what}."
        )
    tested = {name: one for name, one in best.minus.items() if one.p is not None}
    if tested:
        adjusted = dict(zip(tested, holm([one.p or 0.0 for one in tested.values()]), strict=True))
        pairs = "; ".join(
            f"{name} {with_interval(one, '{:+.2f}')}, p = {one.p:.3f}, "
            f"adjusted {adjusted[name]:.3f}"
            for name, one in tested.items()
        )
        said.append(f"{best.activation} against (paired by seed, p adjusted by Holm): {pairs}.")
        many = sum(len(row.minus) for row in confirmed if row.role == "found")
        said.append(
            f"The table makes {many} comparisons: of so many, {0.05 * many:.1f} would leave out "
            "zero by chance alone."
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
        notes.append(f"Not among the confirmed, because all its trainings failed: {missing}.")
    if confirmed and confirmed[0].seeds < seeds:
        notes.append(
            f"The table is over the {confirmed[0].seeds} of {seeds} seeds that all in it have; the "
            "same command makes the failed trainings again."
        )
    return notes
