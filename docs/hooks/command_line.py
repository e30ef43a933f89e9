"""Writes the reference of the command line from the commands themselves, when the site is built."""

from __future__ import annotations

import re
from typing import Any

MARKER = "<!-- commands -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the commands in the place of the marker (a hook of MkDocs)."""
    return markdown.replace(MARKER, reference()) if MARKER in markdown else markdown


def reference() -> str:
    """Return every command with its arguments and options, as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from bo_act.cli import app

    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="bo-act")
    text = get_docs_for_click(obj=command, ctx=context, name="bo-act")
    text = text.replace("* `--help`: Show this message and exit.\n", "")
    # What stands before the first command is the page's own.
    return text[re.search(r"^## ", text, flags=re.MULTILINE).start() :]
