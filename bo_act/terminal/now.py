"""Live view of a study below the bars: the best, running trials, trials by state.

It reads the storage, so it includes trials of other processes.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from optuna.exceptions import OptunaError
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from bo_act.errors import StorageError
from bo_act.metrics import Metric
from bo_act.specs import SEARCHED
from bo_act.study.results.summary import rank
from bo_act.study.storage.metric import metric_of
from bo_act.study.storage.trials import count, own_trials
from bo_act.tasks.configuration import shown

if TYPE_CHECKING:
    import optuna

_BLOCKS = "▁▂▃▄▅▆▇█"
_EPOCHS = 16  # last epochs of a learning curve
_LOOK = 1.0  # seconds between reads of the storage
_ROWS = 8  # running trials shown


class Now:
    """The part of the live view that follows the trials of a study.

    Args:
        study: only read.

    Attributes:
        awaited: trials that an idle worker waits for, one line each.
    """

    def __init__(self, study: optuna.Study) -> None:
        self.awaited: list[str] = []
        self._study = study
        self._metric = metric_of(study)
        self._trials: list[FrozenTrial] = []
        self._looked = -_LOOK
        # Rich draws from its own thread, and from ours when a line is printed.
        self._lock = threading.Lock()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the lines, cut to the terminal's width."""
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(
            no_wrap=True, overflow="ellipsis", max_width=max(10, options.max_width - 9)
        )
        for name, line in self.lines():
            table.add_row(name, line)
        yield table

    def lines(self) -> list[tuple[str, Text]]:
        """Return the current names and lines."""
        trials = self._read()
        rows = []
        best = next(iter(rank(trials, self._metric)), None)
        if best is not None:
            line = Text().append(self._metric.text(best.value), "bold green")
            line.append(f"  {_what(best)}")
            rows.append(("best", line.append(f"  trial {best.number}", "dim")))
        running = [
            t for t in trials if t.state == TrialState.RUNNING and "proposal" in t.user_attrs
        ]
        rows += [(f"#{trial.number}", _running(trial, self._metric)) for trial in running[:_ROWS]]
        if len(running) > _ROWS:
            rows.append(("", Text(f"and {len(running) - _ROWS} more", style="dim")))
        rows += [("", Text(line, style="yellow")) for line in self.awaited[:_ROWS]]
        counts = count(trials)
        complete = f"complete ({counts.diverged} diverged)" if counts.diverged else "complete"
        states = {
            complete: counts.complete,
            "pruned": counts.pruned,
            "failed": counts.failed,
            "running": counts.running,
        }
        said = ", ".join(f"{number} {state}" for state, number in states.items() if number)
        rows.append(("trials", Text(said or "none yet")))
        return rows

    def _read(self) -> list[FrozenTrial]:
        with self._lock:
            if time.monotonic() - self._looked >= _LOOK:
                # A busy database; the workers handle its errors.
                with suppress(StorageError, OptunaError):
                    self._trials = own_trials(self._study)
                self._looked = time.monotonic()
            return self._trials


def sparkline(values: list[float]) -> str:
    """Return a curve as one character per value, scaled from lowest to highest."""
    low, high = min(values), max(values)
    step = (high - low) / (len(_BLOCKS) - 1)
    return "".join(_BLOCKS[round((value - low) / step) if step > 0 else 0] for value in values)


def _running(trial: FrozenTrial, metric: Metric) -> Text:
    curve = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    line = Text(_what(trial))
    if curve:
        line.append(f"  {sparkline(curve[-_EPOCHS:])} ", "cyan")
        line.append(f"{metric.text(curve[-1])} epoch {max(trial.intermediate_values) + 1}")
    return line.append(f"  {_how(trial, metric)}", "dim")


def _what(trial: FrozenTrial) -> str:
    attributes = trial.user_attrs
    texts = [value for key, value in attributes.items() if key.split(".")[-1] == "activation"]
    settings = {k: v for k, v in trial.params.items() if k.startswith(SEARCHED)}
    return " ".join([" and ".join(texts) or "?", *([shown(settings)] if settings else [])])


def _how(trial: FrozenTrial, metric: Metric) -> str:
    proposal = trial.user_attrs.get("proposal", {})
    expected = proposal.get("expected")
    by = str(proposal.get("by", ""))
    return by + ("" if expected is None else f", expected {metric.text(expected)}")
