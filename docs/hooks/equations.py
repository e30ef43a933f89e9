"""Turns the equations of the pages into MathML when the site is built: no script draws them.

The pages have them in LaTeX between dollars, as GitHub shows them, too.
"""

from __future__ import annotations

import re
from html import unescape
from typing import Any

# As pymdownx.arithmatex leaves them.
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Replace every equation of a page (a hook of MkDocs)."""
    return EQUATION.sub(lambda found: _element(found[1], unescape(found[2])), html)


def _element(tag: str, latex: str) -> str:
    display = "block" if tag == "div" else "inline"
    return f'<{tag} class="arithmatex">{mathml(latex, display=display)}</{tag}>'


def mathml(latex: str, *, display: str) -> str:
    """Return an equation as MathML.

    Args:
        latex: without its delimiters.
        display: ``block`` or ``inline``.

    Raises:
        ValueError: it has a command that is not known.
    """
    from latex2mathml.converter import convert

    found = convert(" ".join(latex.split()), display=display)
    if "\\" in found:
        raise ValueError(f"an equation with a command that is not known: {latex}")
    # log x, not logx; before a bracket nothing is wanted.
    return re.sub(r"(<mi>[a-z]{2,}</mi>)(?!<mo|$)", r'\1<mspace width="0.17em"/>', found)
