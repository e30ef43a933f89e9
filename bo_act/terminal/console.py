"""The consoles, and formats shared by all output."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bo_act.tasks.configuration import shown as shown_settings

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def size(count: int) -> str:
    """Return a number of bytes in a suitable unit."""
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
    """Draw curves over x in the terminal, without values that are not finite."""
    import plotext

    plotext.clear_figure()
    plotext.theme("pro" if out.is_terminal else "clear")
    plotext.plotsize(min(out.width, 80), 20)
    plain = not out.encoding.startswith("utf")
    for (name, y), letter in zip(curves.items(), "*o+x", strict=False):
        pairs = [(a, b) for a, b in zip(x, y, strict=True) if abs(b) < float("inf")]
        if pairs:
            plotext.plot(
                *map(list, zip(*pairs, strict=True)),
                label=name,
                marker=letter if plain else "braille",
            )
    plotext.title(title)
    drawn = plotext.build()
    sys.stdout.write((drawn if out.is_terminal else plotext.uncolorize(drawn)) + "\n")


def with_settings(activation: str, settings: Mapping[str, Any]) -> str:
    """Return a function with its settings, as markup."""
    text = shown_settings(settings)
    return f"{activation} [dim]{text}[/]" if text else activation
