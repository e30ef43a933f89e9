"""Progress on stderr: a bar per phase, the live view, and a line per trial."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optuna.trial import TrialState
from rich.console import Group, RenderableType
from rich.live import Live as RichLive
from rich.markup import escape
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
from rich.table import Column

from bo_act.events import Awaited, Events
from bo_act.metrics import Metric
from bo_act.specs import SEARCHED
from bo_act.study.results.failures import failure_of_trial
from bo_act.study.storage.metric import metric_of
from bo_act.terminal.console import duration, err, with_settings
from bo_act.terminal.now import Now

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


FEATURES = "features of the space"

# Seconds of work that need no progress bar.
_MOMENT = 0.5

_REDRAW = 0.25  # seconds

_NARROW = 90  # columns of a terminal below which there is no room for bars


class Live(Events):
    """Progress of a study: a bar per phase, the live view, and a line per trial."""

    def __init__(self, bars: Progress, *, quiet: bool) -> None:
        self.bars = bars
        self.quiet = quiet
        self.now: Now | None = None
        self.screen: _Screen | None = None
        self.tasks: dict[str, TaskID] = {}
        self.best: float | None = None
        self.metric = Metric("value")
        self.paces: dict[str, _Pace] = {}
        self.awaited: set[tuple[int, str]] = set()

    def features(self, done: int, total: int) -> None:
        """Show the features done so far, their rate, and the time left."""
        self._show_paced(FEATURES, "functions", done, total)

    def vectors(self, done: int, total: int) -> None:
        """Show the vectors done so far, their rate, and the time left."""
        self._show_paced("vectors in the Act-Bench format", "functions", done, total)

    def runs(self, done: int, total: int, what: str) -> None:
        """Show the runs done so far, their rate, and the time left."""
        self._show_paced(what, "runs", done, total)

    def opened(self, study: Study) -> None:
        """Follow the trials of a study."""
        self.now = Now(study)
        self.metric = metric_of(study)

    def search(self, done: int, total: int, trial: FrozenTrial | None, best: float | None) -> None:
        """Show a finished trial, the rate of trials, and the best value so far."""
        pace = self.paces.setdefault("search", _Pace(done))
        if trial is not None and not self.quiet:
            better = best is not None and self.metric.better(best, self.best)
            failed = trial.state == TrialState.FAIL
            if self.screen is not None:
                self.screen.print(self._line(trial), whole=failed)
            elif failed or pace.due() or better or done == total:
                # A log: new best trials, failures, and a line per minute.
                err.print(f"search: {done} of {total}{self._line(trial)}", soft_wrap=True)
        self.best = best
        rate = 60 * pace.rate(done)
        parts = [f"{rate:.3g} trials/min"] if rate else []
        self._show("search", "search", done, total, ", ".join(parts))

    def waiting(self, trials: Sequence[Awaited]) -> None:
        """Show the awaited trials; in a log, once until they change."""
        before, self.awaited = self.awaited, {(awaited.trial, awaited.kind) for awaited in trials}
        if self.screen is not None:
            if self.now is not None:
                self.now.awaited = [awaited.text for awaited in trials]
            return
        for awaited in trials:
            # Report endless waiting even with --quiet.
            if (awaited.trial, awaited.kind) not in before and (
                not self.quiet or awaited.kind == "mute"
            ):
                err.print(awaited.text, soft_wrap=True, markup=False)

    def confirmation(self, done: int, total: int, text: str) -> None:
        """Show the fresh-seed runs done so far."""
        self.now = None
        self._show("confirmation", "confirmation with fresh seeds", done, total, text)

    def _show_paced(self, title: str, unit: str, done: int, total: int) -> None:
        pace = self.paces.setdefault(title, _Pace(done))
        rate = pace.rate(done)
        note = f"{rate:.3g} {unit}/s" if rate else ""
        self._show(title, title, done, total, note)
        # In a log file, one line per minute.
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
            shown = escape(self.metric.text(trial.value))
            if self.metric.better(trial.value, self.best):
                shown = f"[bold green]{shown}[/]"
            shown += "  "
        searched = {k: v for k, v in trial.params.items() if k.startswith(SEARCHED)}
        function = with_settings(text, searched)
        if (failure := failure_of_trial(trial)) is not None:
            function += f": {escape(str(failure))}"
        return f"  {trial.number:>4}  {shown}  {function}  [dim]{by}[/]"


class _Pace:
    """Rate of progress since the clock started at ``first``."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.started = self.said = time.monotonic()

    def rate(self, done: int) -> float:
        """Return the rate per second, 0 before any progress."""
        seconds = time.monotonic() - self.started
        return (done - self.first) / seconds if seconds > 0 else 0.0

    def due(self) -> bool:
        """Return True once a minute."""
        now = time.monotonic()
        if now - self.said < 60:
            return False
        self.said = now
        return True


@contextmanager
def live(*, quiet: bool) -> Iterator[Events]:
    """Show the progress of a study while it runs."""
    narrow = err.width < _NARROW
    bars = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        *([] if narrow else [BarColumn(bar_width=30)]),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        *([] if narrow else [TimeElapsedColumn(), TextColumn("[dim]left[/]")]),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}[/]", table_column=Column(no_wrap=True)),
        console=err,
        # A shard of features may take minutes; rich's default is 30 seconds.
        speed_estimate_period=3600,
    )
    events = Live(bars, quiet=quiet)
    if quiet or not err.is_terminal:
        yield events
        return

    events.screen = _Screen(lambda: Group(bars, *([events.now] if events.now else [])))
    try:
        yield events
    finally:
        events.now = None
        events.screen.close()


class _Screen:
    """Redraws the live view below the printed lines.

    Rich's own drawing thread may draw between placing a line and printing it, and then draw over
    that line. Here one lock guards both.
    """

    def __init__(self, picture: Callable[[], RenderableType]) -> None:
        self._live = RichLive(
            get_renderable=picture, console=err, auto_refresh=False, vertical_overflow="crop"
        )
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._live.start()
        self._thread.start()

    def print(self, line: str, *, whole: bool = False) -> None:
        """Print a line above the drawing, cut to the terminal's width unless ``whole``."""
        with self._lock:
            err.print(line, no_wrap=not whole, overflow="fold" if whole else "ellipsis")

    def close(self) -> None:
        """Draw a last time and restore the cursor."""
        self._over.set()
        self._thread.join()
        self._live.refresh()
        self._live.stop()

    def _draw(self) -> None:
        while not self._over.wait(_REDRAW):
            with self._lock:
                self._live.refresh()


@contextmanager
def counting(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of work that takes more than a moment."""
    bars = Progress(
        TextColumn(what),
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
        if err.is_terminal and not quiet and time.monotonic() - started > _MOMENT:
            bars.start()
            bars.update(task, completed=done, total=total)

    try:
        yield progress
    finally:
        if bars.live.is_started:  # else stop() prints an empty line
            bars.stop()
