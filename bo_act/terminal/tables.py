"""Tables on stdout: what a study found, why a trial was made, what is known of a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from bo_act.study.results.verdict import caveats, sampled, verdict, with_interval
from bo_act.terminal.console import key_values, out, size, with_settings

if TYPE_CHECKING:
    from bo_act.features.table import FeatureTable
    from bo_act.study.results.confirmation import Confirmed
    from bo_act.study.results.explanation import TrialExplanation
    from bo_act.study.results.summary import Found, StudyResult
    from bo_act.tasks.failures import FailureGroup


def study_tables(result: StudyResult) -> None:
    """Print what a study found: the search's best and the confirmation."""
    counts = result.trials
    out.print(
        f"[bold]{result.study}[/]: {counts.complete} complete ({counts.diverged} diverged), "
        f"{counts.pruned} pruned, {counts.failed} failed; trials in {result.storage}",
        soft_wrap=True,
    )
    if result.best is None:
        out.print(escape(result.lacking or "No function has been evaluated yet."))
    else:
        out.print(_found_table("Best of the search (validation accuracy, one seed)", result.top))
    if result.front:
        title = "Better than all that cost less (cost at inference in units of ReLU's)"
        out.print(_found_table(title, result.front))
    baseline = result.baseline
    if result.best is not None and (baseline.value is not None or baseline.state):
        what = with_settings("relu(x)", baseline.settings)
        out.print(f"{what} in the same search: {_percent(baseline.value) or baseline.state}")
    if result.confirmed:
        out.print(_confirmed_table(result.confirmed))
    judged = verdict(result.confirmed)
    if judged is not None:
        name = judged.winner.activation
        out.print(judged.text.replace(f"{name},", f"[bold]{name}[/],", 1))
    for note in (judged.note if judged else "", *result.notes, *caveats(result.confirmed)):
        if note:
            out.print(f"[dim]{escape(note)}[/]")
    for line in failure_lines(result.failures):
        out.print(line, soft_wrap=True)


def failure_lines(groups: Sequence[FailureGroup]) -> list[str]:
    """Return what failed and why, a line a reason."""
    return [
        f"[yellow]Failed in the {one.phase}[/], {_times(one.count)}: {escape(one.reason)}"
        + (f" [dim]{escape(one.functions)}[/]" if one.functions else "")
        for one in groups
    ]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _found_table(title: str, functions: Sequence[Found]) -> Table:
    priced = any(found.cost is not None for found in functions)
    table = Table(title=title, title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("activation", overflow="fold")
    table.add_column("validation", justify="right")
    if priced:
        table.add_column("cost", justify="right")
    table.add_column("trial", justify="right")
    for rank, found in enumerate(functions, start=1):
        what = with_settings(found.activation, found.settings)
        cost = [] if not priced else ["" if found.cost is None else f"{found.cost:.3g}"]
        table.add_row(str(rank), what, _percent(found.value), *cost, str(found.trial))
    return table


def _confirmed_table(confirmed: Sequence[Confirmed]) -> Table:
    seeds = confirmed[0].seeds
    over = sampled([row.test for row in confirmed])
    fresh = "1 fresh seed" if seeds == 1 else f"{seeds} fresh seeds, mean and 95% interval {over}"
    table = Table(
        title=f"Confirmed on the test set ({fresh})",
        title_justify="left",
    )
    table.add_column("activation", overflow="fold")
    table.add_column("test accuracy", justify="right")
    table.add_column("minus ReLU", justify="right")
    table.add_column("validation", justify="right")
    table.add_column("in the search", justify="right")
    for place, row in enumerate(confirmed):
        note = f" ({row.diverged} of {seeds} diverged)" if row.diverged else ""
        after = confirmed[place + 1 : place + 2]  # all baselines may be among those found
        last_found = row.role == "found" and any(one.role == "baseline" for one in after)
        table.add_row(
            with_settings(row.activation, row.settings) + note,
            with_interval(row.test, "{:.2f}%"),
            "" if row.minus_relu is None else with_interval(row.minus_relu, "{:+.2f}"),
            _percent(row.validation.mean),
            _percent(row.searched) or row.state,
            end_section=last_found,
        )
    return table


_HOW = {
    "baseline": "given at the start",
    "random": "at random",
    "acquisition": "by the acquisition function",
    "strategy": "by a strategy without a model",
    "enqueued": "by a person",
}


def explanation(found: TrialExplanation) -> None:
    """Print what was expected of a trial, and by which evidence."""
    measured = {"complete": _percent(found.value), "running": "not yet"}.get(found.state)
    rows = {"chosen": _HOW[found.by], "measured": measured or found.state}
    if found.failure:
        rows["why it failed"] = escape(found.failure)
    said = found.explanation
    if said is None:
        key_values(f"Trial {found.trial}: {found.activation}", rows)
        out.print("Nothing was predicted: too little had been evaluated.")
        return
    rows["expected"] = (
        f"{_percent(said.predicted)}, with 90% between {_percent(said.low)} and "
        f"{_percent(said.high)}, after {said.observed} functions"
    )
    rows["because"] = ", ".join(f"{name} {part:+.2f}" for name, part in said.contributions.items())
    key_values(f"Trial {found.trial}: {found.activation}", rows)
    table = Table(title="Most similar before it", title_justify="left")
    table.add_column("activation", overflow="fold")
    table.add_column("value", justify="right")
    table.add_column("similarity", justify="right")
    for text, neighbour in zip(found.neighbours, said.neighbours, strict=True):
        table.add_row(text, _percent(neighbour.value), f"{neighbour.similarity:.2f}")
    out.print(table)
    out.print(
        "Expected values are among those observed. Parts of the prediction are in units of the "
        "warped target, whose deviation is 1: the prior, each block, and all blocks together."
    )


def feature_table(table: FeatureTable, seconds: float) -> None:
    """Print what is known of a space and what is missing, with the reasons."""
    shown = Table(
        title=f"Features of {len(table)} functions ({seconds:.1f} s)", title_justify="left"
    )
    shown.add_column("block")
    shown.add_column("columns", justify="right")
    shown.add_column("present", justify="right")
    shown.add_column("missing", justify="right")
    shown.add_column("why")
    before: dict[str, int] | None = None
    for name, missing in table.missing().items():
        block = table.blocks[name]
        why = "\n".join(f"{count} {reason}" for reason, count in missing.items())
        present = int(block.present.sum())
        shown.add_row(
            name,
            str(block.values.shape[1]),
            str(present),
            str(len(table) - present),
            "the same" if missing and missing == before else why,
        )
        before = missing
    out.print(shown)


def feature_store(table: FeatureTable) -> None:
    """Print which layers the spectra are of and where they are kept."""
    found = table.provenance
    if "layers" not in found:
        return
    uncovered = ", ".join(found["uncovered"])
    rows = {"layers": ", ".join(found["layers"])}
    if uncovered:
        rows["in no block"] = f"{uncovered} (the spectra say nothing of them)"
    if found["store"]:
        rows["kept in"] = f"{found['store']['folder']} ({size(found['store']['bytes'])})"
    key_values("Fisher spectra", rows)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"
