"""Tables on stdout: results of a study, explanation of a trial, features of a space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from bo_act.study.results.summary import FRONT
from bo_act.study.results.verdict import caveats, sampled, verdict, with_interval
from bo_act.terminal.console import key_values, out, size, with_settings

if TYPE_CHECKING:
    from bo_act.features.table import FeatureTable
    from bo_act.metrics import Metric
    from bo_act.study.results.confirmed import Confirmed
    from bo_act.study.results.explanation import TrialExplanation
    from bo_act.study.results.summary import Found, StudyResult
    from bo_act.tasks.failures import FailureGroup


def study_tables(result: StudyResult) -> None:
    """Print the results of a study: the search's best and the confirmation."""
    counts = result.trials
    out.print(
        f"[bold]{result.study}[/]: {counts.complete} complete ({counts.diverged} diverged), "
        f"{counts.pruned} pruned, {counts.failed} failed; trials in {result.storage}",
        soft_wrap=True,
    )
    if result.metrics and result.front:
        out.print(_front_table(result.front, result.metrics))
    elif result.best is None:
        out.print(escape(result.lacking or "No function has been evaluated yet."))
    else:
        title = f"Best of the search ({result.metric.name}, one seed)"
        out.print(_found_table(title, result.top, result.metric))
    if result.front and not result.metrics:
        title = f"Pareto front: {result.metric.name} against inference cost (ReLU = 1)"
        out.print(_found_table(title, result.front, result.metric))
    baseline = result.baseline
    if result.best is not None and (baseline.value is not None or baseline.state):
        reference = with_settings("relu(x)", baseline.settings)
        value = _text(baseline.value, result.metric) or baseline.state
        out.print(f"{reference} in the same search: {value}")
    if result.confirmed:
        out.print(_confirmed_table(result.confirmed, result.metric))
    judged = verdict(result.confirmed, result.metric)
    if judged is not None:
        name = judged.winner.activation
        out.print(escape(judged.text).replace(f"{name},", f"[bold]{name}[/],", 1))
    for note in (
        judged.note if judged else "",
        *result.notes,
        *caveats(result.confirmed, result.metric),
    ):
        if note:
            out.print(f"[dim]{escape(note)}[/]")
    for line in failure_lines(result.failures):
        out.print(line, soft_wrap=True)


def failure_lines(groups: Sequence[FailureGroup]) -> list[str]:
    """Return the failures, one line per reason."""
    return [
        f"[yellow]Failed in the {group.phase}[/], {_times(group.count)}: {escape(group.reason)}"
        + (f" [dim]{escape(group.functions)}[/]" if group.functions else "")
        for group in groups
    ]


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _found_table(title: str, functions: Sequence[Found], metric: Metric) -> Table:
    priced = any(function.cost is not None for function in functions)
    table = Table(title=escape(title), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("activation", overflow="fold")
    table.add_column(escape(metric.name), justify="right")
    if priced:
        table.add_column("cost", justify="right")
    table.add_column("trial", justify="right")
    values = metric.texts([function.value for function in functions])
    for rank, (function, value) in enumerate(zip(functions, values, strict=True), start=1):
        text = with_settings(function.activation, function.settings)
        cost = [] if not priced else ["" if function.cost is None else f"{function.cost:.3g}"]
        table.add_row(str(rank), text, escape(value), *cost, str(function.trial))
    return table


def _front_table(functions: Sequence[Found], metrics: Sequence[Metric]) -> Table:
    table = Table(title=FRONT, title_justify="left")
    table.add_column("activation", overflow="fold")
    for metric in metrics:
        table.add_column(escape(str(metric)), justify="right")
    table.add_column("trial", justify="right")
    columns = [m.texts([f.values[i] for f in functions]) for i, m in enumerate(metrics)]
    for function, *values in zip(functions, *columns, strict=True):
        text = with_settings(function.activation, function.settings)
        table.add_row(text, *map(escape, values), str(function.trial))
    return table


def _confirmed_table(confirmed: Sequence[Confirmed], metric: Metric) -> Table:
    seeds = confirmed[0].seeds
    over = sampled([row.test for row in confirmed])
    fresh = "1 fresh seed" if seeds == 1 else f"{seeds} fresh seeds, mean and 95% interval {over}"
    table = Table(
        title=f"Confirmed on {confirmed[0].data} ({fresh})",
        title_justify="left",
    )
    table.add_column("activation", overflow="fold")
    table.add_column(escape(confirmed[0].of(metric)), justify="right")
    table.add_column("minus ReLU", justify="right")
    table.add_column("validation", justify="right")
    table.add_column("in the search", justify="right")
    for index, row in enumerate(confirmed):
        note = f" ({row.diverged} of {seeds} diverged)" if row.diverged else ""
        after = confirmed[index + 1 : index + 2]  # all baselines may be among the best
        last_found = row.role == "found" and any(later.role == "baseline" for later in after)
        table.add_row(
            with_settings(row.activation, row.settings) + note,
            escape(with_interval(row.test, metric)),
            "" if row.minus_relu is None else with_interval(row.minus_relu, metric, signed=True),
            _text(row.validation.mean, metric),
            _text(row.searched, metric) or row.state,
            end_section=last_found,
        )
    return table


_HOW = {
    "baseline": "as a baseline",
    "random": "at random",
    "acquisition": "by the acquisition function",
    "strategy": "by the strategy",
    "enqueued": "by you (enqueued)",
}


def explanation(explained: TrialExplanation) -> None:
    """Print the prediction for a trial, and its evidence."""
    metric = explained.metric
    measured = {"complete": f"{metric.text(explained.value)} ({metric.name})", "running": "not yet"}
    rows = {
        "chosen": _HOW.get(explained.by, explained.by),
        "measured": escape(measured.get(explained.state, explained.state)),
    }
    for outcome in explained.outcomes:
        texts = [] if outcome.value is None else [outcome.metric.text(outcome.value)]
        if outcome.expected is not None:
            texts.append(f"expected {outcome.metric.text(outcome.expected)}")
        rows[escape(str(outcome.metric))] = escape(", ".join(texts))
    if explained.outcomes and explained.state == "complete":
        del rows["measured"]
    if explained.feasible is not None:
        probability = f"{explained.feasible:.2g}"
        rows["constraints"] = f"satisfied with probability {probability}, as expected then"
    if explained.failure:
        rows["failure"] = escape(explained.failure)
    said = explained.explanation
    if said is None:
        if explained.expected is not None:
            expected = metric.text(explained.expected)
            rows["expected"] = escape(f"{expected}, as recorded in the trial")
        key_values(f"Trial {explained.trial}: {explained.activation}", rows)
        expectations = (explained.expected, *(o.expected for o in explained.outcomes))
        lack = "No prediction" if set(expectations) == {None} else "No further explanation"
        out.print(escape(f"{lack}: {explained.lacking}."), soft_wrap=True)
        return
    predicted, low, high = metric.texts([said.predicted, said.low, said.high])
    rows["expected"] = escape(
        f"{predicted}, 90% interval {low} to {high}, after {said.observed} functions"
    )
    rows["because"] = ", ".join(
        f"{'interaction' if name == 'together' else name} {part:+.2f}"
        for name, part in said.contributions.items()
    )
    key_values(f"Trial {explained.trial}: {explained.activation}", rows)
    table = Table(title="Most similar earlier functions", title_justify="left")
    table.add_column("activation", overflow="fold")
    table.add_column(escape(metric.name), justify="right")
    table.add_column("similarity", justify="right")
    values = metric.texts([neighbour.value for neighbour in said.neighbours])
    for text, neighbour, value in zip(explained.neighbours, said.neighbours, values, strict=True):
        table.add_row(text, escape(value), f"{neighbour.similarity:.2f}")
    out.print(table)
    better = "" if metric.sign > 0 else "; positive parts lower the metric"
    out.print(
        "The expected value is on the metric's scale. The parts of the prediction (prior, each "
        f"block, interaction of blocks) are in units of the warped target, with standard "
        f"deviation 1{better}."
    )


def feature_table(table: FeatureTable, seconds: float) -> None:
    """Print the features of a space, and the reasons for missing ones."""
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
    """Print the layers of the spectra, and the folder that holds them."""
    provenance = table.provenance
    if "layers" not in provenance:
        return
    uncovered = ", ".join(provenance["uncovered"])
    rows = {"layers": ", ".join(provenance["layers"])}
    if uncovered:
        rows["not covered"] = f"{uncovered} (the spectra do not reflect them)"
    if provenance["store"]:
        rows["saved in"] = f"{provenance['store']['folder']} ({size(provenance['store']['bytes'])})"
    key_values("Fisher spectra", rows)


def _text(value: float | None, metric: Metric) -> str:
    return "" if value is None else escape(metric.text(value))
