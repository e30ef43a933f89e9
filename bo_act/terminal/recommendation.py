"""The table of recommended functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from bo_act.terminal.console import out

if TYPE_CHECKING:
    from bo_act.study.results.recommendation import Recommendation


def recommendation(found: Recommendation) -> None:
    """Print recommended functions with their expected gains, and those in each source."""
    in_unit = found.metric.differences if found.metric else "normal scores of ranks"
    table = Table(
        title=escape(f"To try on {found.study}: gain over {found.over} in {in_unit}"),
        title_justify="left",
    )
    table.add_column("activation", overflow="fold")
    table.add_column("expected", justify="right")
    table.add_column("80% interval", justify="right")
    table.add_column("better", justify="right")
    for name in found.sources:
        table.add_column(escape(name), justify="right", overflow="fold")

    def text(gain: float | None) -> str:
        if gain is None:
            return "-"
        return f"{gain:+.2f}" if found.metric is None else found.metric.difference(gain)

    for one in found.functions:
        table.add_row(
            one.activation,
            text(one.gain),
            f"{text(one.low)} to {text(one.high)}",
            f"{one.chance:.0%}",
            *map(text, one.measured),
        )
    out.print(table)
    for note in notes(found):
        out.print(f"[dim]{escape(note)}[/]")


def notes(found: Recommendation) -> list[str]:
    """Return what has to be known beside the table."""
    said = [
        f"Expected from gains on {len(found.sources)} other tasks (right); nothing was trained, "
        "and neither network nor data was read. Functions near the top hardly differ: train some, "
        f"and {found.over}, with several seeds."
    ]
    if found.metric is None:
        said.append("The tasks measure something else than this study, so gains are in ranks.")
    if found.left_out:
        said.append(
            f"Left out, of this very task: {', '.join(found.left_out)}; bo-act bench show "
            f"{found.left_out[0]} has its results."
        )
    return said
