"""What people see in a terminal: progress on stderr, tables and plots on stdout.

Nothing is drawn on a stderr that is not a terminal, except one line a phase.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from bo_act.specs import SEARCHED
from bo_act.study.events import Events
from bo_act.study.settings import shown as shown_settings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from bo_act.activations.space import Space
    from bo_act.features.table import FeatureTable
    from bo_act.study.confirm import Confirmed, Interval
    from bo_act.study.results import StudyResult
    from bo_act.study.why import Why

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

FEATURES = "features of the space"

# Seconds of work that need no progress bar.
_MOMENT = 0.5


class Live(Events):
    """Progress of a study: one bar a phase and one line a trial."""

    def __init__(self, bars: Progress, *, quiet: bool) -> None:
        self.bars = bars
        self.quiet = quiet
        self.tasks: dict[str, TaskID] = {}
        self.best: float | None = None
        self.paces: dict[str, _Pace] = {}

    def features(self, done: int, total: int) -> None:
        """Show features computed so far, how fast, and how long it takes yet."""
        self._show_paced(FEATURES, "functions", done, total)

    def runs(self, done: int, total: int, what: str) -> None:
        """Show runs done so far, how fast, and how long it takes yet."""
        self._show_paced(what, "runs", done, total)

    def search(self, done: int, total: int, trial: FrozenTrial | None, best: float | None) -> None:
        """Show a finished trial, and the best value so far."""
        if trial is not None and not self.quiet and err.is_terminal:
            self.bars.console.print(self._line(trial))
        self.best = best
        self._show("search", "search", done, total, "" if best is None else f"best {best:.4f}")

    def confirmation(self, done: int, total: int, text: str) -> None:
        """Show fresh-seed runs done so far."""
        self._show("confirmation", "confirmation with fresh seeds", done, total, text)

    def _show_paced(self, title: str, unit: str, done: int, total: int) -> None:
        pace = self.paces.setdefault(title, _Pace(done))
        rate = pace.rate(done)
        note = f"{rate:.3g} {unit}/s" if rate else ""
        self._show(title, title, done, total, note)
        # Hours of work may go to a log file: a line a minute, then.
        if rate and not (self.quiet or err.is_terminal) and pace.due():
            left = duration((total - done) / rate)
            err.print(f"{title}: {done:,} of {total:,}, {note}, {left} left", soft_wrap=True)

    def _show(self, key: str, title: str, done: int, total: int, note: str = "") -> None:
        if self.quiet:
            return
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(title, total=total, completed=done, note="")
            if not err.is_terminal and done < total:
                err.print(f"{title}: {total - done} of {total} to do")
        self.bars.update(self.tasks[key], completed=done, total=total, note=note)

    def _line(self, trial: FrozenTrial) -> str:
        text = trial.user_attrs.get("activation", "?")
        by = trial.user_attrs.get("proposal", {}).get("by", "")
        state = trial.state.name.lower()
        if trial.user_attrs.get("status") == "diverged":
            shown = "[red]diverged[/]"
        elif trial.value is None or state != "complete":
            shown = f"[yellow]{state}[/]"
        else:
            better = self.best is None or trial.value > self.best
            shown = f"[bold green]{trial.value:.4f}[/]  " if better else f"{trial.value:.4f}  "
        searched = {k: v for k, v in trial.params.items() if k.startswith(SEARCHED)}
        with_settings = _with_settings(text, searched)
        return f"  {trial.number:>4}  {shown}  {with_settings}  [dim]{by}[/]"


class _Pace:
    """How fast something goes that was at ``first`` when the clock started."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.started = self.said = time.monotonic()

    def rate(self, done: int) -> float:
        """Return how much is done a second, 0 as long as nothing was."""
        seconds = time.monotonic() - self.started
        return (done - self.first) / seconds if seconds > 0 else 0.0

    def due(self) -> bool:
        """Return whether a minute has gone by since this was last the case."""
        now = time.monotonic()
        if now - self.said < 60:
            return False
        self.said = now
        return True


@contextmanager
def live(*, quiet: bool) -> Iterator[Events]:
    """Show the progress of a study while it runs."""
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/]"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}[/]"),
        console=err,
        disable=quiet or not err.is_terminal,
        # A shard of features may take minutes; rich looks at the last 30 seconds otherwise.
        speed_estimate_period=3600,
    )
    with bars:
        yield Live(bars, quiet=quiet)


@contextmanager
def counting() -> Iterator[Callable[[int, int], None]]:
    """Show how far the grouping of a space is, where it takes more than a moment."""
    bars = Progress(
        TextColumn("grouping equal functions"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("[dim]left[/]"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )
    started = time.monotonic()
    task = bars.add_task("", total=None)

    def progress(done: int, total: int) -> None:
        if time.monotonic() - started > _MOMENT:
            bars.start()
            bars.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        bars.stop()


# --- tables ---------------------------------------------------------------------------------


def study_tables(result: StudyResult) -> None:
    """Print what a study found: the search's best and the confirmation."""
    counts = result.trials
    out.print(
        f"[bold]{result.study}[/]: {counts.complete} complete ({counts.diverged} diverged), "
        f"{counts.pruned} pruned, {counts.failed} failed; trials in {result.storage}",
        soft_wrap=True,
    )
    if result.best is None:
        out.print("No function has been evaluated yet.")
        return
    table = Table(title="Best of the search (validation accuracy, one seed)", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("activation", overflow="fold")
    table.add_column("validation", justify="right")
    table.add_column("trial", justify="right")
    for rank, found in enumerate(result.top, start=1):
        what = _with_settings(found.activation, found.settings)
        table.add_row(str(rank), what, _percent(found.value), str(found.trial))
    out.print(table)
    if result.baseline.value is not None:
        what = _with_settings("relu(x)", result.baseline.settings)
        out.print(f"{what} in the same search: {_percent(result.baseline.value)}")
    if result.confirmed:
        out.print(_confirmed_table(result.confirmed))
        out.print(_verdict(result.confirmed))
        if note := _unequal(result.confirmed):
            out.print(note)


def _confirmed_table(confirmed: Sequence[Confirmed]) -> Table:
    seeds = confirmed[0].seeds
    table = Table(
        title=f"Confirmed on the test set ({seeds} fresh seeds, mean and 95% interval)",
        title_justify="left",
    )
    table.add_column("activation", overflow="fold")
    table.add_column("test accuracy", justify="right")
    table.add_column("minus ReLU", justify="right")
    table.add_column("validation", justify="right")
    for place, row in enumerate(confirmed):
        note = f" ({row.diverged} of {seeds} diverged)" if row.diverged else ""
        last_found = row.role == "found" and confirmed[place + 1].role == "baseline"
        table.add_row(
            _with_settings(row.activation, row.settings) + note,
            _with_interval(row.test, "{:.2f}%"),
            "" if row.minus_relu is None else _with_interval(row.minus_relu, "{:+.2f}"),
            _percent(row.validation.mean),
            end_section=last_found,
        )
    return table


def _verdict(confirmed: Sequence[Confirmed]) -> str:
    # Chosen by fresh validation accuracy: choosing by test accuracy would flatter the winner.
    found = [row for row in confirmed if row.role == "found"]
    winner = max(found, key=lambda row: row.validation.mean)
    gain = winner.minus_relu
    if gain is None:
        return "Of the functions found, ReLU itself has the best fresh validation accuracy."
    shown = f"{_with_interval(gain, '{:+.2f}')} points of test accuracy against ReLU"
    name = f"[bold]{winner.activation}[/], the best of them by validation,"
    if gain.low is None:
        return f"{name} has {shown}; one seed gives no interval (confirm.seeds)."
    if gain.low > 0:
        return f"{name} is better than ReLU: {shown}."
    if gain.high is not None and gain.high < 0:
        return f"{name} is worse than ReLU: {shown}."
    return f"{name} has {shown}: the interval includes zero, so nothing is confirmed."


def _unequal(confirmed: Sequence[Confirmed]) -> str:
    """Say with how many settings ReLU was tried, where settings are searched."""
    relu = next(row for row in confirmed if row.minus_relu is None)
    if not relu.settings:
        return ""
    times = "once" if relu.tried == 1 else f"{relu.tried} times"
    return (
        f"[dim]Settings are searched as well, and ReLU was tried {times}: tuned alone, it may be "
        "better than here.[/]"
    )


_HOW = {
    "baseline": "given at the start",
    "random": "at random",
    "acquisition": "by the acquisition function",
    "strategy": "by a strategy without a model",
    "enqueued": "by a person",
}


def explanation(found: Why) -> None:
    """Print what was expected of a trial, and by which evidence."""
    rows = {"chosen": _HOW[found.by], "measured": _percent(found.value) or "not (yet)"}
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


def large_space(space: Space) -> None:
    """Print what a space is that is too large to list."""
    key_values(
        f"Space {space.name}: {space.spec.description}",
        {
            "expressions": f"{len(space):,}",
            "distinct functions": "not counted: searched from tree to tree",
            "schemas": ", ".join(space.spec.schemas),
            "parameters": ", ".join(
                f"{slot} ({len(d.choices)})" for slot, d in space.distributions.items()
            ),
            "baselines": ", ".join(map(str, space.baselines)),
        },
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


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def size(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def key_values(title: str, rows: dict[str, Any]) -> None:
    """Print a two-column table."""
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    out.print(table)


def plot(x: Sequence[float], curves: dict[str, Sequence[float]], *, title: str) -> None:
    """Draw curves over x in the terminal; what is not finite is left out."""
    import plotext

    plotext.clear_figure()
    plotext.theme("pro" if out.is_terminal else "clear")
    plotext.plotsize(min(out.width, 80), 20)
    for name, y in curves.items():
        pairs = [(a, b) for a, b in zip(x, y, strict=True) if abs(b) < float("inf")]
        if pairs:
            plotext.plot(*map(list, zip(*pairs, strict=True)), label=name, marker="braille")
    plotext.title(title)
    drawn = plotext.build()
    sys.stdout.write((drawn if out.is_terminal else plotext.uncolorize(drawn)) + "\n")


def _with_settings(activation: str, settings: Mapping[str, Any]) -> str:
    text = shown_settings(settings)
    return f"{activation} [dim]{text}[/]" if text else activation


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}%"


def _with_interval(value: Interval, form: str) -> str:
    shown = form.format(100 * value.mean)
    if value.low is None or value.high is None:
        return shown
    return f"{shown} ±{50 * (value.high - value.low):.2f}"
