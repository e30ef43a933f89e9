"""The table of recommended functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from bo_act.terminal.console import out

if TYPE_CHECKING:
    from bo_act.study.results.recommendation import Recommendation

_WIDE = 24  # characters of a function that stay on one line


def recommendation(found: Recommendation) -> None:
    """Print recommended functions with their expected gains, and those in each source."""

    def texts(gains: Sequence[float | None]) -> list[str]:
        if found.metric is not None:
            return [found.metric.difference(one) for one in gains]
        return ["-" if one is None else f"{one:+.2f}" for one in gains]

    table = Table(
        title=escape(f"To try on {found.study}: gain over {found.over} in {found.unit}"),
        title_justify="left",
    )
    longest = max((len(one.activation) for one in found.functions), default=0)
    table.add_column("activation", overflow="fold", no_wrap=longest <= _WIDE)
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column(f"{found.level:.0%} interval", justify="right", no_wrap=True)
    table.add_column("better", justify="right", no_wrap=True)
    table.add_column("in each source")
    for one in found.functions:
        gain, low, high = texts([one.gain, one.low, one.high])
        where = " ".join(texts(one.measured))
        table.add_row(one.activation, gain, f"{low} to {high}", f"{one.chance:.0%}", where)
    out.print(table)
    for note in notes(found):
        out.print(f"[dim]{escape(note)}[/]")


def notes(found: Recommendation) -> list[str]:
    """Return what has to be known beside the table."""
    said = [
        f"Sources: {', '.join(found.sources)}. Nothing was trained, and neither this network nor "
        "its data was read. The first functions hardly differ: train some of them and "
        f"{found.over}, with several seeds."
    ]
    if found.metric is None:
        said.append(
            "Not all sources measure what this study does, so gains are differences between the "
            "normal quantiles of ranks: 1 is from the median to the best sixth."
        )
    if found.left_out:
        said.append(
            f"Left out, of this very task: {', '.join(found.left_out)}; bo-act bench show "
            f"{found.left_out[0]} has its results."
        )
    return said
