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


def recommendation(advice: Recommendation) -> None:
    """Print recommended functions with their expected gains, and those in each source."""

    def texts(gains: Sequence[float | None]) -> list[str]:
        if advice.metric is not None:
            return [advice.metric.difference(gain) for gain in gains]
        return ["-" if gain is None else f"{gain:+.2f}" for gain in gains]

    table = Table(
        title=escape(f"Recommended for {advice.study}: gain over {advice.over} in {advice.unit}"),
        title_justify="left",
    )
    longest = max((len(function.activation) for function in advice.functions), default=0)
    table.add_column("activation", overflow="fold", no_wrap=longest <= _WIDE)
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column(f"{advice.level:.0%} interval", justify="right", no_wrap=True)
    table.add_column("P(better)", justify="right", no_wrap=True)
    table.add_column("in each source")
    for function in advice.functions:
        gain, low, high = texts([function.gain, function.low, function.high])
        where = " ".join(texts(function.measured))
        table.add_row(
            function.activation, gain, f"{low} to {high}", f"{function.chance:.0%}", where
        )
    out.print(table)
    for note in notes(advice):
        out.print(f"[dim]{escape(note)}[/]")


def notes(advice: Recommendation) -> list[str]:
    """Return the notes below the table."""
    said = [
        f"Sources, in the order of the last column: {', '.join(advice.sources)}. Nothing was "
        "trained, and neither this network nor its data was read. The first functions hardly "
        f"differ: train some of them and {advice.over}, with several seeds."
    ]
    if advice.metric is None:
        said.append(
            "Not all sources measure this study's metric, so gains are differences between normal "
            "quantiles of ranks: 1 is the difference between the median and the best sixth."
        )
    if advice.left_out:
        said.append(
            f"Left out, because they measure this very task: {', '.join(advice.left_out)} "
            f"(see bo-act bench show {advice.left_out[0]})."
        )
    return said
