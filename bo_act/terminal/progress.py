"""Progress on stderr: one bar a phase and one line a trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

from bo_act.specs import SEARCHED
from bo_act.study.events import Events
from bo_act.terminal.console import duration, err, with_settings

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

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
        what = with_settings(text, searched)
        return f"  {trial.number:>4}  {shown}  {what}  [dim]{by}[/]"


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
