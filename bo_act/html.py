"""HTML for notebooks: small, self-contained, and with escaped texts.

It uses the page's colours (``currentColor``), so it is readable in light and dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["Markup", "box", "escape", "table"]


class Markup(str):
    """Text that is HTML already; anything else is escaped."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return itself: the protocol by which templates skip escaping."""
        return str(self)


def _safe(content: object) -> str:
    return content if isinstance(content, Markup) else escape(str(content))


def table(
    headers: Sequence[object], rows: Sequence[Sequence[object]], *, numbers: frozenset[int]
) -> Markup:
    """Return a table.

    Args:
        headers: one for each column.
        rows: of cells, text or markup.
        numbers: columns that are aligned to the right.
    """
    style = "padding:0.25em 0.8em;border-bottom:1px solid rgba(128,128,128,0.35);"

    def line(cells: Sequence[object], tag: str) -> str:
        return "".join(
            f'<{tag} style="{style}text-align:{"right" if column in numbers else "left"}">'
            f"{_safe(cell)}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return Markup(
        '<div style="overflow-x:auto"><table style="border-collapse:collapse">'
        f"<thead><tr>{line(headers, 'th')}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def box(title: object, *parts: object) -> Markup:
    """Return a title above parts, each in its own block."""
    inner = "".join(f'<div style="margin-top:0.5em">{_safe(part)}</div>' for part in parts)
    return Markup(
        f'<div style="max-width:60em"><strong style="font-size:1.05em">{_safe(title)}</strong>'
        f"{inner}</div>"
    )
