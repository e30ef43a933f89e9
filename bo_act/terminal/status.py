"""The status of a study as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from bo_act.terminal.console import duration, out
from bo_act.terminal.tables import failure_lines

if TYPE_CHECKING:
    from bo_act.study.results.status import AtWork, StudyStatus


def status_table(status: StudyStatus) -> RenderableType:
    """Return the status of a study for printing."""
    return Group(*_parts(status))


def _parts(status: StudyStatus) -> list[Table | str]:
    counts = status.trials
    planned = "" if status.total is None else f" of {status.total}"
    rows = {
        "finished": f"{counts.finished}{planned}",
        "by state": (
            f"{counts.complete} complete ({counts.diverged} diverged), {counts.pruned} pruned, "
            f"{counts.failed} failed, {counts.running} running"
        ),
        "rate": "" if status.per_hour is None else f"{_rounded(status.per_hour)} trials per hour",
        "time left": "none" if status.done else _left(status),
        "best so far": _best(status),
        "measured": escape("; ".join(map(str, status.metrics or (status.metric,)))),
    }
    if status.total is None:
        del rows["time left"]
    facts = Table(title=f"Study {status.study}", title_justify="left", show_header=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, text in rows.items():
        facts.add_row(name, text)
    said: list[Table | str] = [facts, *failure_lines(status.failures)]
    if not status.workers:
        return [*said, "No worker is running."]
    table = Table(title="Workers", title_justify="left")
    for name in ("host", "pid", "trial"):
        table.add_column(name, justify="left" if name == "host" else "right")
    table.add_column("activation", overflow="fold")
    # In-memory studies have no heartbeats: leave the room to the function.
    heard = any(worker.silent is not None or not worker.alive for worker in status.workers)
    for name in ("epochs", "for", *(["heartbeat"] if heard else [])):
        table.add_column(name, justify="right")
    for worker in status.workers:
        table.add_row(
            worker.host,
            "" if worker.pid is None else str(worker.pid),
            str(worker.trial),
            worker.activation,
            str(worker.epochs),
            duration(worker.seconds),
            *([_heard(worker)] if heard else []),
        )
    return [*said, table]


def show_status(status: StudyStatus) -> None:
    """Print the status of a study."""
    for part in _parts(status):
        out.print(part, soft_wrap=isinstance(part, str))


def _heard(worker: AtWork) -> str:
    heard = [] if worker.silent is None else [f"{worker.silent:.0f} s ago"]
    if not worker.alive:
        heard.append("[yellow]gone; trial waits for another worker[/]")
    return "\n".join(heard) or "never"


def _rounded(rate: float) -> str:
    """Return a rate with three digits, none of them in an exponent."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _left(status: StudyStatus) -> str:
    return "unknown" if status.seconds_left is None else f"about {duration(status.seconds_left)}"


def _best(status: StudyStatus) -> str:
    if status.front:
        count = len(status.front)
        return f"{count} function{'s' * (count > 1)} on the Pareto front (see bo-act best)"
    best = status.best
    if best is None or best.value is None:
        return status.lacking or "none"
    return f"{escape(f'{best.activation}  {status.metric.text(best.value)}')} (trial {best.trial})"
